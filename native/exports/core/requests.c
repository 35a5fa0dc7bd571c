/* What a front asks for: each request passes the gate, checks the seal, and is counted. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "media.h"

#define NS_PER_S 1e9
#define SETTLING_NS 50000

static uint64_t deadline_of(const struct export_target *target)
{
	if (target->options.patience <= 0)
		return 0;
	return export_now(CLOCK_MONOTONIC) + (uint64_t)(target->options.patience * NS_PER_S);
}

/* The gate is open and the seal is not as we know it: the thread closes the gate, or takes over what
 * has changed, in a moment. */
static int settle(struct export_target *target, uint64_t deadline)
{
	const struct timespec moment = {.tv_nsec = SETTLING_NS};

	recall_look(target);
	nanosleep(&moment, NULL);
	return deadline && export_now(CLOCK_MONOTONIC) > deadline ? -ETIMEDOUT : 0;
}

int export_enter(struct export_target *target, unsigned int flags)
{
	uint64_t deadline = 0;
	int error = 0, open, waited = 0;

	while (!error) {
		open = gate_try(&target->gate);
		if (open && seal_valid(&target->seal))
			return 0;
		gate_leave(&target->gate);
		if (flags & EXPORT_NOWAIT) {
			if (open)
				recall_look(target);
			return -EAGAIN;
		}
		if (!waited++)
			deadline = deadline_of(target);
		error = open ? settle(target, deadline) : gate_wait(&target->gate, deadline);
	}
	return error == -ETIMEDOUT ? -EIO : error;
}

void export_leave(struct export_target *target)
{
	gate_leave(&target->gate);
}

struct request {
	enum export_op op;
	size_t length;
	uint64_t offset;
	unsigned int flags;
	uint64_t begun;
};

static int begin(struct export_target *target, struct request *request)
{
	request->begun = export_now(CLOCK_MONOTONIC);
	if (request->offset > target->size || request->length > target->size - request->offset)
		return -EINVAL;
	if (request->op != EXPORT_OP_READ && request->op != EXPORT_OP_FLUSH &&
	    target->options.read_only)
		return -EROFS;
	return export_enter(target, request->flags);
}

/* A request that was not let in is not counted as one that failed when it is asked again. */
static int end(struct export_target *target, const struct request *request, int error)
{
	struct export_stats *stats = target->stats;

	if (error == -EAGAIN)
		return error;
	export_record(&stats->latency[request->op], export_now(CLOCK_MONOTONIC) - request->begun);
	if (error && error != -EILSEQ)
		__atomic_fetch_add(&stats->errors, 1, __ATOMIC_RELAXED);
	else
		__atomic_fetch_add(&stats->bytes[request->op], request->length, __ATOMIC_RELAXED);
	return error;
}

static void order(struct export_target *target, int alone)
{
	if (alone)
		pthread_rwlock_wrlock(&target->order);
	else
		pthread_rwlock_rdlock(&target->order);
}

int export_read(struct export_target *target, void *buffer, size_t length, uint64_t offset,
		unsigned int flags)
{
	struct request request = {EXPORT_OP_READ, length, offset, flags, 0};
	int error = begin(target, &request);

	if (!error) {
		error = media_read(target, buffer, length, offset);
		export_leave(target);
	}
	return end(target, &request, error);
}

int export_write(struct export_target *target, const void *buffer, size_t length, uint64_t offset,
		 unsigned int flags)
{
	struct request request = {EXPORT_OP_WRITE, length, offset, flags, 0};
	int error = begin(target, &request);

	if (!error) {
		order(target, media_is_partial(target, length, offset));
		error = media_write(target, buffer, length, offset);
		pthread_rwlock_unlock(&target->order);
		if (!error && flags & EXPORT_FUA)
			error = media_settle(target, length, offset);
		export_leave(target);
	}
	return end(target, &request, error);
}

int export_zero(struct export_target *target, size_t length, uint64_t offset, unsigned int flags)
{
	struct request request = {EXPORT_OP_ZERO, length, offset, flags, 0};
	int error;

	if (flags & EXPORT_FAST && !target->zeroes_fast)
		return -EOPNOTSUPP;
	error = begin(target, &request);
	if (!error) {
		order(target, media_is_partial(target, length, offset));
		error = media_zero(target, length, offset);
		pthread_rwlock_unlock(&target->order);
		if (!error && flags & EXPORT_FUA)
			error = media_settle(target, length, offset);
		export_leave(target);
	}
	return end(target, &request, error);
}

int export_compare_and_write(struct export_target *target, const void *expected,
			     const void *replacement, size_t length, uint64_t offset,
			     unsigned int flags, size_t *at)
{
	struct request request = {EXPORT_OP_COMPARE, length, offset, flags, 0};
	int error = begin(target, &request);

	if (!error) {
		order(target, 1);
		error = media_compare(target, expected, length, offset, at);
		if (!error)
			error = media_write(target, replacement, length, offset);
		pthread_rwlock_unlock(&target->order);
		if (!error && flags & EXPORT_FUA)
			error = media_settle(target, length, offset);
		export_leave(target);
	}
	return end(target, &request, error);
}

int export_flush(struct export_target *target, unsigned int flags)
{
	struct request request = {EXPORT_OP_FLUSH, 0, 0, flags, 0};
	int error = begin(target, &request);

	if (!error) {
		if (target->mapped_io && !target->dax && !target->options.read_only &&
		    msync(target->mapping, target->size, MS_SYNC))
			error = -errno;
		else if (fdatasync(target->fd))
			error = -errno;
		export_leave(target);
	}
	return end(target, &request, error);
}

/* The blocks go back to the file system and come anew, as zeroes: a change of the sealed map, so that
 * it takes a pause of the whole target. */
static int punch(struct export_target *target, size_t length, uint64_t offset)
{
	int error;

	pthread_mutex_lock(&target->turn);
	recall_pause_begins(target, "a discard");
	error = recall_give_back(target);
	if (!error && fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				(off_t)offset, (off_t)length))
		error = -errno;
	if (error == -ESHUTDOWN || recall_reseal(target)) {
		pthread_mutex_unlock(&target->turn);
		return -ESHUTDOWN;
	}
	recall_pause_ends(target);
	pthread_mutex_unlock(&target->turn);
	return error;
}

int export_discard(struct export_target *target, size_t length, uint64_t offset, unsigned int flags)
{
	struct request request = {EXPORT_OP_DISCARD, length, offset, flags, 0};
	int error;

	if (!export_discards(target))
		return -EOPNOTSUPP;
	error = begin(target, &request);
	if (!error) {
		/* Not as one of those that the pause waits for. */
		export_leave(target);
		error = length ? punch(target, length, offset) : 0;
	}
	return end(target, &request, error);
}

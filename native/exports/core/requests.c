/* What a front asks for: each request passes the gate, checks the seal, and is counted. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "media.h"

#define NS_PER_S 1e9
#define SETTLING_NS 50000
#define TOLD_AFTER 20 /* tries: a second */
#define PUNCHES 10 /* tries: what others keep from being discarded is their decision in the end */

/* Of a request that came at `begun`; 0: it waits for ever. */
static uint64_t deadline_of(const struct export_target *target, uint64_t begun)
{
	if (target->options.patience <= 0)
		return 0;
	return begun + (uint64_t)(target->options.patience * NS_PER_S);
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
			deadline = deadline_of(target, export_now(CLOCK_MONOTONIC));
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
	unsigned int refusals;
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

/* Leave, with what the request came to. 1: the kernel refused it on behalf of the service, which is no answer
 * of the medium, and it has entered again for another try. What is to be recalled can be in between. */
static int left(struct export_target *target, struct request *request, int *error)
{
	uint64_t deadline = deadline_of(target, request->begun);
	const char *why = strerror(-*error);

	export_leave(target);
	if (!media_is_refused(*error))
		return 0;
	__atomic_fetch_add(&target->stats->refusals, 1, __ATOMIC_RELAXED);
	if (++request->refusals == TOLD_AFTER)
		target_say(target, LOG_WARNING, "refused, and tried again: %s", why);
	if (deadline && export_now(CLOCK_MONOTONIC) > deadline) {
		target_say(target, LOG_ERR, "refused for longer than a request waits: %s", why);
		*error = -EIO;
		return 0;
	}
	recall_look(target);
	media_rest(request->refusals);
	*error = gate_has_ended(&target->gate) ? -ESHUTDOWN : export_enter(target, request->flags);
	return !*error;
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
	struct request request = {EXPORT_OP_READ, length, offset, flags, 0, 0};
	int error = begin(target, &request);

	if (!error) {
		do
			error = media_read(target, buffer, length, offset);
		while (left(target, &request, &error));
	}
	return end(target, &request, error);
}

/* Of a write: `stored` is what storing it came to. */
static int settled(struct export_target *target, const struct request *request, int stored)
{
	if (stored || !(request->flags & EXPORT_FUA))
		return stored;
	return media_settle(target, request->length, request->offset);
}

static int write_once(struct export_target *target, const struct request *request,
		      const void *buffer)
{
	int error;

	order(target, media_is_partial(target, request->length, request->offset));
	error = buffer ? media_write(target, buffer, request->length, request->offset)
		       : media_zero(target, request->length, request->offset);
	pthread_rwlock_unlock(&target->order);
	return settled(target, request, error);
}

int export_write(struct export_target *target, const void *buffer, size_t length, uint64_t offset,
		 unsigned int flags)
{
	struct request request = {EXPORT_OP_WRITE, length, offset, flags, 0, 0};
	int error = begin(target, &request);

	if (!error) {
		do
			error = write_once(target, &request, buffer);
		while (left(target, &request, &error));
	}
	return end(target, &request, error);
}

int export_zero(struct export_target *target, size_t length, uint64_t offset, unsigned int flags)
{
	struct request request = {EXPORT_OP_ZERO, length, offset, flags, 0, 0};
	int error;

	if (flags & EXPORT_FAST && !target->zeroes_fast)
		return -EOPNOTSUPP;
	error = begin(target, &request);
	if (!error) {
		do
			error = write_once(target, &request, NULL);
		while (left(target, &request, &error));
	}
	return end(target, &request, error);
}

/* What is refused has written nothing, since it is one call: the next try compares what this one did. */
static int compare_once(struct export_target *target, const struct request *request,
			const void *expected, const void *replacement, size_t *at)
{
	int error;

	order(target, 1);
	error = media_compare(target, expected, request->length, request->offset, at);
	if (!error)
		error = media_write(target, replacement, request->length, request->offset);
	pthread_rwlock_unlock(&target->order);
	return settled(target, request, error);
}

int export_compare_and_write(struct export_target *target, const void *expected,
			     const void *replacement, size_t length, uint64_t offset,
			     unsigned int flags, size_t *at)
{
	struct request request = {EXPORT_OP_COMPARE, length, offset, flags, 0, 0};
	int error = length > EXPORT_LONGEST_COMPARE ? -EINVAL : begin(target, &request);

	if (!error) {
		do
			error = compare_once(target, &request, expected, replacement, at);
		while (left(target, &request, &error));
	}
	return end(target, &request, error);
}

int export_flush(struct export_target *target, unsigned int flags)
{
	struct request request = {EXPORT_OP_FLUSH, 0, 0, flags, 0, 0};
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

static int punch_once(struct export_target *target, size_t length, uint64_t offset)
{
	int error = media_punch(target, length, offset);

	for (unsigned int n = 1; n < PUNCHES && media_is_refused(error); n++) {
		media_rest(n);
		error = media_punch(target, length, offset);
	}
	return error;
}

/* The blocks go back to the file system and come anew, as zeroes: a change of the sealed map, so that
 * it takes a pause of the whole target. */
static int punch(struct export_target *target, size_t length, uint64_t offset)
{
	int error;

	pthread_mutex_lock(&target->turn);
	recall_pause_begins(target, "a discard");
	error = recall_give_back(target);
	if (!error)
		error = punch_once(target, length, offset);
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
	struct request request = {EXPORT_OP_DISCARD, length, offset, flags, 0, 0};
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

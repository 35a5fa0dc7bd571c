#include "sealsvc/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void close_groups(struct seal_gate *gate)
{
	for (int i = 0; i < SHARDS; i++)
		close_if_open(gate->groups[i]);
}

int gate_open_group(struct seal_gate *gate, int shard)
{
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
			 FAN_UNLIMITED_MARKS | FAN_REPORT_TID;

	gate->groups[shard] = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	return gate->groups[shard] < 0 ? -errno : 0;
}

/* 0 or -errno; what is open stays so. */
static int open_groups(struct seal_gate *gate)
{
	int error;

	for (int i = 0; i < SHARDS; i++)
		gate->groups[i] = -1;
	error = gate_open_group(gate, 0);
	if (error)
		return error;
	gate->arming = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY);
	return gate->arming < 0 ? -errno : 0;
}

static void destroy(struct seal_gate *gate)
{
	/* The groups first: their end lets whatever is held go on. */
	close_groups(gate);
	close_if_open(gate->arming);
	for (size_t i = 0; i < BUCKETS; i++) {
		while (gate->by_id[i]) {
			struct waiter *waiter = gate->by_id[i];

			close_if_open(waiter->event_fd);
			gate_forget_waiter(gate, waiter);
			free(waiter);
		}
		while (gate->files[i]) {
			gate->files[i]->waiters = NULL;
			gate_remove_file(gate, gate->files[i]);
		}
	}
	close_if_open(gate->placeholder);
	close_if_open(gate->prover);
	close_if_open(gate->epoll);
	close_if_open(gate->wake);
	close_if_open(gate->later);
	close_if_open(gate->ticks);
	close_if_open(gate->trip);
	free(gate);
}

/* One that does not end is stuck in a look; it is the process's end that ends it. */
static void end_seat(struct seal_gate *gate, struct seat *seat)
{
	struct timespec patience;

	if (!seat)
		return;
	clock_gettime(CLOCK_REALTIME, &patience);
	patience.tv_sec++;
	if (pthread_timedjoin_np(seat->thread, NULL, &patience)) {
		gate->lost[seat->kind]++;
		return;
	}
	seal_task_looker_close(&seat->looker);
	free(seat);
}

static void stop(struct seal_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->stopping = 1;
	pthread_cond_broadcast(&gate->work);
	pthread_mutex_unlock(&gate->lock);
	eventfd_write(gate->wake, 1);
	pthread_join(gate->minder, NULL); /* from now on nobody's place is given away */
	for (int i = 0; i < SHARDS; i++) {
		if (gate->readers[i])
			pthread_cancel(gate->readers[i]->thread);
		end_seat(gate, gate->readers[i]);
	}
	end_seat(gate, gate->looker);
	pthread_mutex_lock(&gate->lock);
	while (gate_answer_some(gate)) /* nobody else is left to do it */
		;
	pthread_mutex_unlock(&gate->lock);
}

static int start_threads(struct seal_gate *gate)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&gate->minder, NULL, gate_minder_main, gate);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return error;
	pthread_mutex_lock(&gate->lock);
	error = gate_take_seat(gate, SEAT_LOOKER, 0);
	if (!error)
		error = gate_take_seat(gate, SEAT_READER, 0);
	pthread_mutex_unlock(&gate->lock);
	if (error)
		stop(gate);
	return error;
}

/* Events need descriptors of their own: the kernel denies what it cannot open one for. */
static int highest_descriptor(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur > INT32_MAX)
		return INT32_MAX;
	return (int)files.rlim_cur - DESCRIPTORS_FREE;
}

int seal_gate_open(struct seal_gate **out, const struct seal_gate_outlet *outlet)
{
	struct seal_gate *gate = calloc(1, sizeof(*gate));
	struct epoll_event wake = {.events = EPOLLIN, .data.u64 = EVENT_WAKE};
	struct epoll_event later = {.events = EPOLLIN, .data.u64 = EVENT_LATER};
	struct epoll_event ticks = {.events = EPOLLIN, .data.u64 = EVENT_TICK};
	struct epoll_event trip = {.events = EPOLLIN, .data.u64 = EVENT_TRIP};
	int error;

	if (!gate)
		return -ENOMEM;
	gate->tgid = getpid();
	gate->outlet = *outlet;
	pthread_mutex_init(&gate->lock, NULL);
	pthread_cond_init(&gate->work, NULL);
	gate->descriptors = highest_descriptor();
	gate->prover = gate->placeholder = gate->arming = gate->epoll = gate->wake = -1;
	gate->later = gate->ticks = gate->trip = -1;
	error = open_groups(gate);
	if (!error)
		gate->placeholder = open("/", O_PATH | O_CLOEXEC);
	if (gate->placeholder >= 0)
		gate->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (gate->epoll >= 0)
		gate->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gate->wake >= 0)
		gate->later = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->later >= 0)
		gate->ticks = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->ticks >= 0)
		gate->trip = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->trip < 0 || epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->wake, &wake) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->later, &later) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->ticks, &ticks) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->trip, &trip) < 0) {
		error = error ? error : -errno;
		destroy(gate);
		return error;
	}
	error = start_threads(gate);
	if (error) {
		destroy(gate);
		return error;
	}
	*out = gate;
	return 0;
}

void seal_gate_close(struct seal_gate *gate)
{
	stop(gate);
	/* A thread that is stuck in a look may come back to what it needs: it ends with the process. */
	if (gate->lost[SEAT_READER] || gate->lost[SEAT_LOOKER])
		close_groups(gate);
	else
		destroy(gate);
}

void seal_gate_exempt(struct seal_gate *gate, int32_t tgid)
{
	__atomic_store_n(&gate->exempt, tgid, __ATOMIC_RELEASE);
}

int seal_gate_guard(struct seal_gate *gate, uint64_t device, uint64_t inode,
		    const struct seal_guard *guard)
{
	struct seal_guard *there, *grown;
	struct file *file;
	int error = 0, was_arming = 0;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (!file) {
		error = -ENOENT;
	} else if ((there = gate_find_guard(file, guard->id))) {
		was_arming = there->policy == SEAL_POLICY_ARMING;
		*there = *guard;
	} else if ((grown = realloc(file->guards, (file->guard_count + 1) * sizeof(*grown)))) {
		file->guards = grown;
		file->guards[file->guard_count++] = *guard;
	} else {
		error = -ENOMEM;
	}
	if (!error)
		gate_settle_all(gate, file);
	if (was_arming && guard->policy == SEAL_POLICY_WAIT)
		gate_announce_again(gate, file, guard);
	gate_unlock(gate);
	return error;
}

int seal_gate_unguard(struct seal_gate *gate, uint64_t device, uint64_t inode, uint64_t id)
{
	struct seal_guard *guard = NULL;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		guard = gate_find_guard(file, id);
	if (guard) {
		*guard = file->guards[--file->guard_count];
		gate_settle_all(gate, file);
	}
	gate_unlock(gate);
	return guard ? 0 : -ENOENT;
}

int64_t seal_gate_passages(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	int64_t left = -ENOENT;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file) {
		left = (int64_t)file->passage_count;
		gate_prune_passages(gate, file);
	}
	pthread_mutex_unlock(&gate->lock);
	return left;
}

int64_t seal_gate_own_events(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	int64_t count = -ENOENT;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		count = (int64_t)file->own_events;
	pthread_mutex_unlock(&gate->lock);
	return count;
}

static int is_deniable(int error)
{
	switch (error) {
	case 0:
	case EPERM:
	case EIO:
	case EAGAIN:
	case EBUSY:
	case ETXTBSY:
	case ENOSPC:
	case EDQUOT:
		return 1;
	}
	return 0;
}

int seal_gate_answer(struct seal_gate *gate, uint64_t id, int error)
{
	struct waiter *waiter;

	if (!is_deniable(error))
		return -EINVAL;
	pthread_mutex_lock(&gate->lock);
	waiter = gate_take_waiter(gate, id);
	if (waiter)
		gate_finish(gate, waiter, error);
	gate_unlock(gate);
	return waiter ? 0 : -ENOENT;
}

int seal_gate_absolve(struct seal_gate *gate, uint64_t id, uint64_t guard)
{
	struct waiter *waiter;
	struct file *file;
	int error = -ENOENT;

	pthread_mutex_lock(&gate->lock);
	waiter = gate_find_waiter(gate, id, &file);
	if (waiter && waiter->absolved_count == ABSOLVED_MAX) {
		gate_take_waiter(gate, id);
		gate_finish(gate, waiter, EBUSY);
		error = -ENOSPC;
	} else if (waiter) {
		waiter->absolved[waiter->absolved_count++] = guard;
		waiter->asked = 0;
		gate_settle_all(gate, file);
		error = 0;
	}
	gate_unlock(gate);
	return error;
}

int seal_gate_settle(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		gate_settle_all(gate, file);
	gate_unlock(gate);
	return file ? 0 : -ENOENT;
}

void seal_gate_on_watch(struct seal_gate *gate, seal_gate_watch_judge *judge, void *context)
{
	pthread_mutex_lock(&gate->lock);
	gate->judge = judge;
	gate->judge_context = context;
	pthread_mutex_unlock(&gate->lock);
}

int seal_gate_prover(struct seal_gate *gate, int prover)
{
	int old, fresh = prover < 0 ? -1 : fcntl(prover, F_DUPFD_CLOEXEC, 0);

	if (prover >= 0 && fresh < 0)
		return -errno;
	pthread_mutex_lock(&gate->lock);
	old = gate->prover;
	gate->prover = fresh;
	pthread_mutex_unlock(&gate->lock);
	close_if_open(old);
	return 0;
}

pthread_mutex_t *seal_gate_lock(struct seal_gate *gate)
{
	return &gate->lock;
}

void seal_gate_replay(struct seal_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			for (struct waiter *waiter = file->waiters; waiter; waiter = waiter->next)
				if (waiter->reported || waiter->asked)
					gate_tell_again(gate, waiter, waiter->report.kind);
	pthread_mutex_unlock(&gate->lock);
}

size_t seal_gate_files(struct seal_gate *gate, struct seal_gate_file *out, size_t max)
{
	size_t count = 0;

	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next, count++)
			if (count < max)
				out[count] = (struct seal_gate_file){
					.device = file->device,
					.inode = file->inode,
					.traits = file->traits,
					.fd = file->path_fd,
					.guards = (uint32_t)file->guard_count,
				};
	pthread_mutex_unlock(&gate->lock);
	return count;
}

size_t seal_gate_guards(struct seal_gate *gate, struct seal_gate_guard *out, size_t max)
{
	size_t count = 0;

	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			for (size_t g = 0; g < file->guard_count; g++, count++)
				if (count < max)
					out[count] = (struct seal_gate_guard){
						file->device, file->inode, file->guards[g]};
	pthread_mutex_unlock(&gate->lock);
	return count;
}

void seal_gate_count(struct seal_gate *gate, struct seal_gate_counters *out)
{
	pthread_mutex_lock(&gate->lock);
	*out = gate->counters;
	pthread_mutex_unlock(&gate->lock);
}

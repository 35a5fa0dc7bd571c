#include "sealsvc/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "internal.h"

/* struct statx as of v6.11; older headers lack what we read. */
#ifndef STATX_WRITE_ATOMIC
#define STATX_WRITE_ATOMIC 0x00010000U
#endif
struct statx_atomic {
	uint32_t mask, before[41];
	uint32_t atomic_write_unit_min, atomic_write_unit_max, after[20];
};
_Static_assert(sizeof(struct statx_atomic) == 256, "linux/stat.h");

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void destroy(struct seal_gate *gate)
{
	/* The group first: its end lets whatever is held go on. */
	close_if_open(gate->group);
	close_if_open(gate->arming);
	for (size_t i = 0; i < BUCKETS; i++)
		while (gate->files[i]) {
			struct file *file = gate->files[i];

			while (file->waiters) {
				struct waiter *waiter = file->waiters;

				file->waiters = waiter->next;
				close_if_open(waiter->event_fd);
				close_if_open(waiter->pidfd);
				free(waiter);
			}
			gate_remove_file(gate, file);
		}
	while (gate->unseen) {
		struct waiter *waiter = gate->unseen;

		gate->unseen = waiter->next;
		close(waiter->event_fd);
		free(waiter);
	}
	close_if_open(gate->placeholder);
	close_if_open(gate->prover);
	close_if_open(gate->epoll);
	close_if_open(gate->wake);
	close_if_open(gate->later);
	close_if_open(gate->trip);
	seal_task_looker_close(&gate->reader_looker);
	seal_task_looker_close(&gate->minder_looker);
	seal_task_looker_close(&gate->passages_looker);
	free(gate);
}

static int start_threads(struct seal_gate *gate)
{
	sigset_t all, before;
	int error;

	/* Signals are the main thread's business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&gate->minder, NULL, gate_minder_main, gate);
	if (!error) {
		error = pthread_create(&gate->reader, NULL, gate_reader_main, gate);
		if (error) {
			gate->stopping = 1;
			eventfd_write(gate->wake, 1);
			pthread_join(gate->minder, NULL);
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

int seal_gate_open(struct seal_gate **out, const struct seal_gate_outlet *outlet)
{
	struct seal_gate *gate = calloc(1, sizeof(*gate));
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
			 FAN_UNLIMITED_MARKS | FAN_REPORT_TID;
	struct epoll_event wake = {.events = EPOLLIN, .data.u64 = EVENT_WAKE};
	struct epoll_event later = {.events = EPOLLIN, .data.u64 = EVENT_LATER};
	struct epoll_event trip = {.events = EPOLLIN, .data.u64 = EVENT_TRIP};
	int error;

	if (!gate)
		return -ENOMEM;
	gate->tgid = getpid();
	gate->outlet = *outlet;
	pthread_mutex_init(&gate->lock, NULL);
	pthread_mutex_init(&gate->passages_lock, NULL);
	seal_task_looker_init(&gate->reader_looker);
	seal_task_looker_init(&gate->minder_looker);
	seal_task_looker_init(&gate->passages_looker);
	gate->prover = gate->placeholder = gate->group = gate->arming = gate->epoll = gate->wake =
		-1;
	gate->later = gate->trip = -1;
	gate->group = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (gate->group >= 0)
		gate->arming = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY);
	if (gate->arming >= 0)
		gate->placeholder = open("/", O_PATH | O_CLOEXEC);
	if (gate->placeholder >= 0)
		gate->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (gate->epoll >= 0)
		gate->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gate->wake >= 0)
		gate->later = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->later >= 0)
		gate->trip = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->trip < 0 || epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->wake, &wake) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->later, &later) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->trip, &trip) < 0) {
		error = -errno;
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
	pthread_mutex_lock(&gate->lock);
	gate->stopping = 1;
	pthread_mutex_unlock(&gate->lock);
	eventfd_write(gate->wake, 1);
	pthread_cancel(gate->reader);
	pthread_join(gate->reader, NULL);
	pthread_join(gate->minder, NULL);
	destroy(gate);
}

void seal_gate_exempt(struct seal_gate *gate, int32_t tgid)
{
	__atomic_store_n(&gate->exempt, tgid, __ATOMIC_RELEASE);
}

int seal_gate_arm(struct seal_gate *gate, int fd)
{
	char path[40];

	/* A path, since a super block is marked through one. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fanotify_mark(gate->arming, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS,
			  AT_FDCWD, path) < 0)
		return -errno;
	if (fanotify_mark(gate->arming, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_IGNORE_SURV,
			  FAN_PRE_ACCESS, AT_FDCWD, path) < 0)
		return -errno;
	return 0;
}

static int remark(struct seal_gate *gate, unsigned int action, const struct file *file)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file->path_fd);
	return fanotify_mark(gate->group, action, WATCH_MASK, AT_FDCWD, path) < 0 ? -errno : 0;
}

static int open_path(int fd)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_PATH | O_CLOEXEC);
}

/* Before v6.11 statx(2) does not know of atomic writes, and nor does the kernel. */
static int may_write_atomically(int fd)
{
	struct statx_atomic stx = {.mask = 0};

	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_WRITE_ATOMIC, &stx) < 0)
		return 1;
	return (stx.mask & STATX_WRITE_ATOMIC) && stx.atomic_write_unit_max;
}

/* Opened with access mode 3: for neither reading nor writing. Such a description counts in neither
 * i_readcount nor i_writecount (fs/open.c do_dentry_open), so it may be kept beside leases. */
static int is_uncounted(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) == O_ACCMODE;
}

int seal_gate_watch(struct seal_gate *gate, int fd, const struct seal_traits *traits)
{
	int error = 0, added = 0, atomic = may_write_atomically(fd);
	struct file *file;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, st.st_dev, st.st_ino);
	if (!file) {
		file = gate_add_file(gate, &st);
		added = 1;
	}
	if (file) {
		file->traits = *traits;
		file->traits.atomic = (uint32_t)atomic;
	}
	pthread_mutex_unlock(&gate->lock);
	if (!file)
		return -ENOMEM;
	if (!added)
		return 0;
	/* The file is in the table before the first event of it can come. */
	file->path_fd = is_uncounted(fd) ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : open_path(fd);
	error = file->path_fd < 0 ? -errno : remark(gate, FAN_MARK_ADD, file);
	if (error) {
		pthread_mutex_lock(&gate->lock);
		gate_remove_file(gate, file);
		pthread_mutex_unlock(&gate->lock);
	}
	return error;
}

int seal_gate_unwatch(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file;
	int error = 0;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (!file)
		error = -ENOENT;
	else if (file->guard_count)
		error = -EBUSY;
	else
		error = remark(gate, FAN_MARK_REMOVE, file);
	/* The mark may have gone with the inode. */
	if (!error || error == -ENOENT) {
		error = file ? 0 : -ENOENT;
		if (file)
			gate_remove_file(gate, file);
	}
	pthread_mutex_unlock(&gate->lock);
	return error;
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
	pthread_mutex_unlock(&gate->lock);
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
	pthread_mutex_unlock(&gate->lock);
	return guard ? 0 : -ENOENT;
}

int64_t seal_gate_passages(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	int64_t left = -ENOENT;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file) {
		gate_prune_passages(gate, file);
		left = (int64_t)file->passage_count;
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
	pthread_mutex_unlock(&gate->lock);
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
	pthread_mutex_unlock(&gate->lock);
	return error;
}

int seal_gate_settle(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		gate_settle_all(gate, file);
	pthread_mutex_unlock(&gate->lock);
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
					gate->outlet.deliver(gate->outlet.context, &waiter->report);
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

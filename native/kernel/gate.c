#include "sealsvc/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fanotify.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sealsvc/operation.h"
#include "sealsvc/procfs.h"

/* Since v6.14 (include/uapi/linux/fanotify.h); older headers lack them. */
#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#ifndef FAN_EVENT_INFO_TYPE_RANGE
#define FAN_EVENT_INFO_TYPE_RANGE 6
#endif
#define FAN_DENY_WITH(error) (FAN_DENY | ((uint32_t)(error) << 24))

#define WATCH_MASK (FAN_PRE_ACCESS | FAN_OPEN_PERM)
#define BUCKETS 4096
#define REPORTS_LIMIT 4096    /* of refusals; held operations are always reported */
#define LOOKS_AT_ONCE 50      /* at a task that is still on its way to sleep */
#define LOOKS_LATER_US 200    /* between further ones */
#define LOOKS_LIMIT_US 200000 /* then it is judged without being seen */

struct range_info { /* struct fanotify_event_info_range, since v6.14 */
	struct fanotify_event_info_header header;
	uint32_t pad;
	uint64_t offset, count;
};

/* An operation that waits for our answer. */
struct waiter {
	struct waiter *next;
	uint64_t id, since_us;
	int event_fd, pidfd;
	int reported; /* a HELD report was made, so that its end is to be reported too */
	struct seal_event event;
	struct seal_report report;
};

/* An operation that was let through and may still be changing the map. */
struct passage {
	struct seal_syscall call;
	int32_t tid;
};

struct file {
	struct file *next;
	uint64_t device, inode, own_events;
	struct seal_traits traits;
	struct seal_guard *guards;
	struct waiter *waiters;
	struct passage *passages;
	size_t guard_count, passage_count, passage_room;
};

struct gate_threads {
	pthread_t reader, minder;
};

struct seal_gate {
	int group, arming, notify, epoll, wake;
	int32_t tgid;
	int stopping;
	struct gate_threads threads;

	/* Guards everything below. Never held across a call that can touch a watched file. */
	pthread_mutex_t lock;
	struct file *files[BUCKETS];
	struct waiter *unseen; /* tasks not yet asleep: looked at again by the minder */
	struct seal_report *reports;
	size_t report_count, report_room;
	uint64_t next_waiter;
	struct seal_gate_counters counters;

	/* The reader thread's, the minder's and drains' own. */
	struct seal_syscall_reader reader_calls;
	pthread_mutex_t calls_lock;
	struct seal_syscall_reader other_calls;
};

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int in_process(int32_t tgid, int32_t tid)
{
	return tgid > 0 && syscall(SYS_tgkill, tgid, tid, 0) == 0;
}

/* -- files ------------------------------------------------------------------------------------- */

static struct file **bucket(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	uint64_t hash = (inode ^ device << 32) * UINT64_C(0x9e3779b97f4a7c15);

	return &gate->files[hash >> 52];
}

static struct file *find_file(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file = *bucket(gate, device, inode);

	while (file && (file->inode != inode || file->device != device))
		file = file->next;
	return file;
}

static struct file *add_file(struct seal_gate *gate, const struct stat *st)
{
	struct file **at = bucket(gate, st->st_dev, st->st_ino);
	struct file *file = calloc(1, sizeof(*file));

	if (!file)
		return NULL;
	file->device = st->st_dev;
	file->inode = st->st_ino;
	file->next = *at;
	*at = file;
	gate->counters.files++;
	return file;
}

static void remove_file(struct seal_gate *gate, struct file *file)
{
	struct file **at = bucket(gate, file->device, file->inode);

	while (*at != file)
		at = &(*at)->next;
	*at = file->next;
	free(file->guards);
	free(file->passages);
	free(file);
	gate->counters.files--;
}

static struct seal_guard *find_guard(struct file *file, uint64_t id)
{
	for (size_t i = 0; i < file->guard_count; i++)
		if (file->guards[i].id == id)
			return &file->guards[i];
	return NULL;
}

/* -- passages: what was let through and may still be under way ----------------------------------- */

static char task_letter(int32_t tid)
{
	struct seal_task task;

	return seal_task_read(tid, &task) == 0 ? task.state : '\0';
}

/* Has `tid` left the call it was let through in? A task that sleeps interruptibly is not inside one:
 * file systems wait for their locks and I/O uninterruptibly. "No" may be wrong; "yes" is not. */
static int has_left(const struct passage *passage, const struct seal_syscall *now)
{
	const struct seal_syscall *then = &passage->call;
	char letter;

	if (now->state == SEAL_TASK_GONE)
		return 1;
	if (now->state == SEAL_TASK_RUNNING)
		return 0;
	if (then->state == SEAL_TASK_BLOCKED &&
	    (now->nr != then->nr || now->sp != then->sp || now->pc != then->pc ||
	     memcmp(now->args, then->args, sizeof(now->args)) != 0))
		return 1;
	letter = task_letter(passage->tid);
	return letter == 'S' || letter == 'Z' || letter == '\0';
}

/* Forget those that have ended. */
static void prune_passages(struct seal_gate *gate, struct file *file)
{
	pthread_mutex_lock(&gate->calls_lock);
	for (size_t i = 0; i < file->passage_count;) {
		struct seal_syscall now;

		seal_syscall_read(&gate->other_calls, file->passages[i].tid, &now);
		if (has_left(&file->passages[i], &now))
			file->passages[i] = file->passages[--file->passage_count];
		else
			i++;
	}
	pthread_mutex_unlock(&gate->calls_lock);
}

static void passage_begins(struct seal_gate *gate, struct file *file, int32_t tid,
			   const struct seal_syscall *call)
{
	if (file->passage_count == file->passage_room)
		prune_passages(gate, file);
	if (file->passage_count == file->passage_room) {
		size_t room = file->passage_room ? file->passage_room * 2 : 8;
		struct passage *grown = realloc(file->passages, room * sizeof(*grown));

		if (!grown)
			return; /* no memory: drain() then misses one; nothing better can be done */
		file->passages = grown;
		file->passage_room = room;
	}
	file->passages[file->passage_count++] = (struct passage){*call, tid};
}

/* A task that asks again has finished what it asked for before. */
static void passages_end(struct file *file, int32_t tid)
{
	for (size_t i = 0; i < file->passage_count;)
		if (file->passages[i].tid == tid)
			file->passages[i] = file->passages[--file->passage_count];
		else
			i++;
}

/* -- reports ----------------------------------------------------------------------------------- */

static void report(struct seal_gate *gate, const struct seal_report *what)
{
	if (what->kind == SEAL_REPORT_REFUSED && gate->report_count >= REPORTS_LIMIT) {
		gate->counters.dropped_reports++;
		return;
	}
	if (gate->report_count == gate->report_room) {
		size_t room = gate->report_room ? gate->report_room * 2 : 64;
		struct seal_report *grown = realloc(gate->reports, room * sizeof(*grown));

		if (!grown) {
			gate->counters.dropped_reports++;
			return;
		}
		gate->reports = grown;
		gate->report_room = room;
	}
	gate->reports[gate->report_count++] = *what;
	if (eventfd_write(gate->notify, 1) < 0)
		return; /* saturated: it is readable already */
}

static void answer(struct seal_gate *gate, int event_fd, int error)
{
	struct fanotify_response response = {
		.fd = event_fd,
		.response = error ? FAN_DENY_WITH(error) : FAN_ALLOW,
	};

	/* ENOENT: the caller was killed meanwhile. Nothing is left to answer then. */
	if (write(gate->group, &response, sizeof(response)) < 0 && errno != ENOENT)
		gate->counters.failed_answers++;
}

/* Answer one that was held. The number stays taken until the answer is in: the reader thread could
 * otherwise be given it for another event, and the kernel knows an event by its number alone. */
static void respond(struct seal_gate *gate, int event_fd, int error)
{
	answer(gate, event_fd, error);
	close(event_fd);
}

/* Let one go on from the reader thread itself, which takes no other event meanwhile. Closing first
 * has our description of the file gone before its caller can look who else has it open. */
static void pass(struct seal_gate *gate, int event_fd)
{
	close(event_fd);
	answer(gate, event_fd, 0);
}

/* -- judging ----------------------------------------------------------------------------------- */

/* The strictest guard that `operation` conflicts with: its policy, or -1 when it is free. A holder's
 * own conflict is answered at once: it cannot be recalled while it is stopped here (EDEADLK is what
 * one would want; fanotify cannot send it). */
static int judge(const struct file *file, const struct seal_operation *operation, int *error)
{
	int strictest = -1;

	*error = 0;
	for (size_t i = 0; i < file->guard_count; i++) {
		const struct seal_guard *guard = &file->guards[i];
		int own;

		if (!seal_conflicts(operation, guard, &file->traits, 1) &&
		    !seal_conflicts(operation, guard, &file->traits, 0))
			continue;
		own = in_process(guard->holder, operation->tid);
		if (!seal_conflicts(operation, guard, &file->traits, own))
			continue;
		if (guard->policy == SEAL_POLICY_REFUSE)
			*error = ETXTBSY;
		else if ((own && guard->policy != SEAL_POLICY_ARMING) ||
			 guard->policy == SEAL_POLICY_BUSY)
			*error = *error ? *error : EBUSY;
		if ((int)guard->policy > strictest)
			strictest = (int)guard->policy;
	}
	return strictest;
}

static void identify(struct seal_report *what)
{
	struct seal_task task;

	if (seal_task_read(what->operation.tid, &task) == 0) {
		what->tgid = task.tgid;
		what->uid = task.uid;
		memcpy(what->comm, task.comm, sizeof(what->comm));
	}
}

/* End a waiter: answer it, report its end when its beginning was, and free it. */
static void finish(struct seal_gate *gate, struct waiter *waiter, int error)
{
	respond(gate, waiter->event_fd, error == EINTR ? EPERM : error);
	if (waiter->pidfd >= 0)
		close(waiter->pidfd); /* leaves the epoll set with it */
	waiter->report.waited_us = now_us() - waiter->since_us;
	waiter->report.result = error;
	if (waiter->reported) {
		waiter->report.kind = SEAL_REPORT_ENDED;
		report(gate, &waiter->report);
	} else if (error && error != EINTR) {
		waiter->report.kind = SEAL_REPORT_REFUSED;
		waiter->report.waiter = 0;
		report(gate, &waiter->report);
		gate->counters.refused++;
	}
	gate->counters.waiters--;
	free(waiter);
}

static void announce(struct seal_gate *gate, struct waiter *waiter)
{
	if (waiter->reported)
		return;
	waiter->reported = 1;
	waiter->report.kind = SEAL_REPORT_HELD;
	report(gate, &waiter->report);
	gate->counters.held++;
}

/* Judge a held operation anew. Returns 1 when it has ended and is gone. */
static int settle(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	int error, policy = judge(file, &waiter->report.operation, &error);

	if (policy < 0 && seal_changes_maps(waiter->report.operation.op)) {
		struct seal_syscall call;

		pthread_mutex_lock(&gate->calls_lock);
		seal_syscall_read(&gate->other_calls, waiter->event.tid, &call);
		pthread_mutex_unlock(&gate->calls_lock);
		passage_begins(gate, file, waiter->event.tid, &call);
	}
	if (policy < 0 || error) {
		finish(gate, waiter, policy < 0 ? 0 : error);
		return 1;
	}
	if (policy != SEAL_POLICY_ARMING)
		announce(gate, waiter);
	return 0;
}

static void settle_all(struct seal_gate *gate, struct file *file)
{
	struct waiter **at = &file->waiters;

	while (*at) {
		struct waiter *waiter = *at, *next = waiter->next;

		if (settle(gate, file, waiter))
			*at = next;
		else
			at = &waiter->next;
	}
}

/* -- events ------------------------------------------------------------------------------------ */

/* Follow the waiter's process, so that we learn when it is killed in the middle of its wait. */
static int follow(struct seal_gate *gate, struct waiter *waiter)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = waiter->id};

	waiter->pidfd = (int)syscall(SYS_pidfd_open, waiter->report.tgid, 0);
	if (waiter->pidfd < 0)
		return errno == ESRCH ? -ESRCH : 0; /* without one it is merely noticed later */
	return epoll_ctl(gate->epoll, EPOLL_CTL_ADD, waiter->pidfd, &event);
}

static struct waiter *new_waiter(struct seal_gate *gate, const struct seal_event *event,
				 int event_fd, const struct file *file)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));

	if (!waiter)
		return NULL;
	waiter->id = waiter->report.waiter = ++gate->next_waiter;
	waiter->since_us = now_us();
	waiter->event_fd = event_fd;
	waiter->pidfd = -1;
	waiter->event = *event;
	waiter->report.device = file->device;
	waiter->report.inode = file->inode;
	gate->counters.waiters++;
	return waiter;
}

/* Hold what conflicts; called with the lock held and the operation known. */
static void hold(struct seal_gate *gate, struct file *file, struct waiter *waiter,
		 const struct seal_operation *operation)
{
	waiter->report.operation = *operation;
	identify(&waiter->report);
	if (settle(gate, file, waiter))
		return;
	if (follow(gate, waiter) == -ESRCH) {
		finish(gate, waiter, EINTR);
		return;
	}
	waiter->next = file->waiters;
	file->waiters = waiter;
}

/* What the kernel asks about `file`. Returns 1 when it may go on at once. */
static int admit(struct seal_gate *gate, struct file *file, const struct seal_event *event,
		 int event_fd)
{
	struct seal_operation operation;
	struct seal_syscall call;
	struct waiter *waiter;
	int error;

	passages_end(file, event->tid);
	for (int look = 0; look < LOOKS_AT_ONCE; look++) {
		seal_syscall_read(&gate->reader_calls, event->tid, &call);
		if (call.state != SEAL_TASK_RUNNING)
			break;
		sched_yield();
	}
	if (call.state != SEAL_TASK_RUNNING) {
		seal_operation_judge(event, &call, &operation);
		if (judge(file, &operation, &error) < 0) {
			if (seal_changes_maps(operation.op))
				passage_begins(gate, file, event->tid, &call);
			return 1;
		}
	}
	waiter = new_waiter(gate, event, event_fd, file);
	if (!waiter) { /* no memory to hold it with: refuse, fail closed */
		respond(gate, event_fd, EBUSY);
	} else if (call.state == SEAL_TASK_RUNNING) {
		waiter->next = gate->unseen;
		gate->unseen = waiter;
		eventfd_write(gate->wake, 1);
	} else {
		hold(gate, file, waiter, &operation);
	}
	return 0;
}

static void parse(const struct fanotify_event_metadata *meta, struct seal_event *event)
{
	const char *end = (const char *)meta + meta->event_len;
	const char *at = (const char *)meta + meta->metadata_len;

	memset(event, 0, sizeof(*event));
	event->tid = meta->pid;
	event->is_open = (meta->mask & FAN_OPEN_PERM) != 0;
	while (at + sizeof(struct fanotify_event_info_header) <= end) {
		struct range_info info;

		memcpy(&info.header, at, sizeof(info.header));
		if (info.header.len < sizeof(info.header))
			break;
		if (info.header.info_type == FAN_EVENT_INFO_TYPE_RANGE &&
		    at + sizeof(info) <= end) {
			memcpy(&info, at, sizeof(info));
			event->has_range = 1;
			event->offset = info.offset;
			event->length = info.count;
		}
		at += info.header.len;
	}
}

static void handle(struct seal_gate *gate, const struct fanotify_event_metadata *meta)
{
	struct seal_event event;
	struct file *file = NULL;
	struct stat st;
	int go_on = 1, own;

	if (meta->fd < 0)
		return;
	parse(meta, &event);
	own = in_process(gate->tgid, event.tid);
	pthread_mutex_lock(&gate->lock);
	gate->counters.events++;
	if (fstat(meta->fd, &st) == 0)
		file = find_file(gate, st.st_dev, st.st_ino);
	if (own) {
		gate->counters.own++;
		if (file)
			file->own_events++;
	} else if (file) {
		go_on = admit(gate, file, &event, meta->fd);
	}
	gate->counters.passed += (uint64_t)go_on;
	if (go_on)
		pass(gate, meta->fd);
	pthread_mutex_unlock(&gate->lock);
}

/* Blocks in read(2), where it may be cancelled; the rest of the time it may not. */
static void *reader_main(void *argument)
{
	struct seal_gate *gate = argument;
	char buffer[16384] __attribute__((aligned(8)));
	int state;

	pthread_setname_np(pthread_self(), "seal-gate");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	for (;;) {
		struct fanotify_event_metadata *meta = (void *)buffer;
		ssize_t n;

		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
		n = read(gate->group, buffer, sizeof(buffer));
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
		for (; n > 0 && FAN_EVENT_OK(meta, n); meta = FAN_EVENT_NEXT(meta, n))
			handle(gate, meta);
	}
	return NULL;
}

/* -- the minder: tasks not yet asleep, and waiters that die ---------------------------------------- */

static void look_again(struct seal_gate *gate)
{
	struct waiter **at = &gate->unseen;

	while (*at) {
		struct waiter *waiter = *at;
		struct file *file = find_file(gate, waiter->report.device, waiter->report.inode);
		struct seal_operation operation;
		struct seal_syscall call;

		pthread_mutex_lock(&gate->calls_lock);
		seal_syscall_read(&gate->other_calls, waiter->event.tid, &call);
		pthread_mutex_unlock(&gate->calls_lock);
		if (call.state == SEAL_TASK_RUNNING &&
		    now_us() - waiter->since_us < LOOKS_LIMIT_US) {
			at = &waiter->next;
			continue;
		}
		*at = waiter->next;
		seal_operation_judge(&waiter->event, &call, &operation);
		if (file) {
			hold(gate, file, waiter, &operation);
		} else {
			finish(gate, waiter, 0);
		}
	}
}

static void waiter_died(struct seal_gate *gate, uint64_t id)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			for (struct waiter **at = &file->waiters; *at; at = &(*at)->next)
				if ((*at)->id == id) {
					struct waiter *waiter = *at;

					*at = waiter->next;
					finish(gate, waiter, EINTR);
					return;
				}
}

static void *minder_main(void *argument)
{
	struct seal_gate *gate = argument;
	struct epoll_event events[32];
	int stopping = 0;

	pthread_setname_np(pthread_self(), "seal-minder");
	while (!stopping) {
		struct timespec nap = {0, LOOKS_LATER_US * 1000};
		eventfd_t count;
		int n, unseen;

		pthread_mutex_lock(&gate->lock);
		unseen = gate->unseen != NULL;
		pthread_mutex_unlock(&gate->lock);
		n = epoll_wait(gate->epoll, events, 32, unseen ? 0 : -1);
		if (unseen)
			nanosleep(&nap, NULL);
		pthread_mutex_lock(&gate->lock);
		for (int i = 0; i < n; i++)
			if (events[i].data.u64 == 0)
				eventfd_read(gate->wake, &count);
			else
				waiter_died(gate, events[i].data.u64);
		look_again(gate);
		stopping = gate->stopping;
		pthread_mutex_unlock(&gate->lock);
	}
	return NULL;
}

/* -- opening and closing --------------------------------------------------------------------------- */

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
				close(waiter->event_fd);
				close_if_open(waiter->pidfd);
				free(waiter);
			}
			remove_file(gate, file);
		}
	while (gate->unseen) {
		struct waiter *waiter = gate->unseen;

		gate->unseen = waiter->next;
		close(waiter->event_fd);
		free(waiter);
	}
	close_if_open(gate->notify);
	close_if_open(gate->epoll);
	close_if_open(gate->wake);
	seal_syscall_reader_close(&gate->reader_calls);
	seal_syscall_reader_close(&gate->other_calls);
	free(gate->reports);
	free(gate);
}

static int start_threads(struct seal_gate *gate)
{
	sigset_t all, before;
	int error;

	/* Signals are the main thread's business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&gate->threads.minder, NULL, minder_main, gate);
	if (!error) {
		error = pthread_create(&gate->threads.reader, NULL, reader_main, gate);
		if (error) {
			gate->stopping = 1;
			eventfd_write(gate->wake, 1);
			pthread_join(gate->threads.minder, NULL);
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

int seal_gate_open(struct seal_gate **out)
{
	struct seal_gate *gate = calloc(1, sizeof(*gate));
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
			 FAN_UNLIMITED_MARKS | FAN_REPORT_TID;
	struct epoll_event wake = {.events = EPOLLIN, .data.u64 = 0};
	int error;

	if (!gate)
		return -ENOMEM;
	gate->tgid = getpid();
	pthread_mutex_init(&gate->lock, NULL);
	pthread_mutex_init(&gate->calls_lock, NULL);
	seal_syscall_reader_init(&gate->reader_calls);
	seal_syscall_reader_init(&gate->other_calls);
	gate->group = gate->arming = gate->notify = gate->epoll = gate->wake = -1;
	gate->group = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (gate->group >= 0)
		gate->arming = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY);
	if (gate->arming >= 0)
		gate->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gate->notify >= 0)
		gate->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (gate->epoll >= 0)
		gate->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gate->wake < 0 || epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->wake, &wake) < 0) {
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
	pthread_cancel(gate->threads.reader);
	pthread_join(gate->threads.reader, NULL);
	pthread_join(gate->threads.minder, NULL);
	destroy(gate);
}

int seal_gate_fd(const struct seal_gate *gate)
{
	return gate->notify;
}

/* -- what callers do ------------------------------------------------------------------------------ */

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

int seal_gate_watch(struct seal_gate *gate, int fd, const struct seal_traits *traits)
{
	struct file *file;
	struct stat st;
	int error = 0, added = 0;

	if (fstat(fd, &st) < 0)
		return -errno;
	pthread_mutex_lock(&gate->lock);
	file = find_file(gate, st.st_dev, st.st_ino);
	if (!file) {
		file = add_file(gate, &st);
		added = 1;
	}
	if (file)
		file->traits = *traits;
	pthread_mutex_unlock(&gate->lock);
	if (!file)
		return -ENOMEM;
	if (!added)
		return 0;
	/* The file is in the table before the first event of it can come. */
	if (fanotify_mark(gate->group, FAN_MARK_ADD, WATCH_MASK, fd, NULL) < 0) {
		error = -errno;
		pthread_mutex_lock(&gate->lock);
		remove_file(gate, file);
		pthread_mutex_unlock(&gate->lock);
	}
	return error;
}

int seal_gate_unwatch(struct seal_gate *gate, int fd)
{
	struct file *file;
	struct stat st;
	int error = 0;

	if (fstat(fd, &st) < 0)
		return -errno;
	pthread_mutex_lock(&gate->lock);
	file = find_file(gate, st.st_dev, st.st_ino);
	if (!file)
		error = -ENOENT;
	else if (file->guard_count)
		error = -EBUSY;
	else
		remove_file(gate, file);
	pthread_mutex_unlock(&gate->lock);
	if (!error && fanotify_mark(gate->group, FAN_MARK_REMOVE, WATCH_MASK, fd, NULL) < 0)
		error = -errno;
	return error;
}

int seal_gate_guard(struct seal_gate *gate, uint64_t device, uint64_t inode,
		    const struct seal_guard *guard)
{
	struct seal_guard *there, *grown;
	struct file *file;
	int error = 0;

	pthread_mutex_lock(&gate->lock);
	file = find_file(gate, device, inode);
	if (!file) {
		error = -ENOENT;
	} else if ((there = find_guard(file, guard->id))) {
		*there = *guard;
	} else if ((grown = realloc(file->guards, (file->guard_count + 1) * sizeof(*grown)))) {
		file->guards = grown;
		file->guards[file->guard_count++] = *guard;
	} else {
		error = -ENOMEM;
	}
	if (!error)
		settle_all(gate, file);
	pthread_mutex_unlock(&gate->lock);
	return error;
}

int seal_gate_unguard(struct seal_gate *gate, uint64_t device, uint64_t inode, uint64_t id)
{
	struct seal_guard *guard = NULL;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = find_file(gate, device, inode);
	if (file)
		guard = find_guard(file, id);
	if (guard) {
		*guard = file->guards[--file->guard_count];
		settle_all(gate, file);
	}
	pthread_mutex_unlock(&gate->lock);
	return guard ? 0 : -ENOENT;
}

static void nap_us(long us)
{
	struct timespec nap = {0, us * 1000};

	nanosleep(&nap, NULL);
}

/* How many operations that were let through are still under way, or -ENOENT. */
static int64_t passages_left(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file;
	int64_t left = -ENOENT;

	pthread_mutex_lock(&gate->lock);
	file = find_file(gate, device, inode);
	if (file) {
		prune_passages(gate, file);
		left = (int64_t)file->passage_count;
	}
	pthread_mutex_unlock(&gate->lock);
	return left;
}

int seal_gate_drain(struct seal_gate *gate, uint64_t device, uint64_t inode, uint32_t timeout_us)
{
	uint64_t deadline = now_us() + timeout_us;
	int64_t left;

	while ((left = passages_left(gate, device, inode)) > 0 && now_us() < deadline)
		nap_us(100);
	return left < 0 ? (int)left : left == 0;
}

int seal_gate_drain_process(struct seal_gate *gate, int pid, uint32_t timeout_us)
{
	uint64_t deadline = now_us() + timeout_us;
	int32_t tids[4096];
	int count = seal_task_threads(pid, tids, 4096);

	if (count < 0)
		return 1; /* gone, and its calls with it */
	if (count > 4096)
		return 0;
	while (count > 0) {
		struct passage unknown = {.tid = tids[count - 1], .call.state = SEAL_TASK_RUNNING};
		struct seal_syscall now;
		struct seal_operation operation;
		struct seal_event event = {.tid = unknown.tid};

		pthread_mutex_lock(&gate->calls_lock);
		seal_syscall_read(&gate->other_calls, unknown.tid, &now);
		pthread_mutex_unlock(&gate->calls_lock);
		seal_operation_judge(&event, &now, &operation);
		if (has_left(&unknown, &now) ||
		    (now.state == SEAL_TASK_BLOCKED && !seal_changes_maps(operation.op))) {
			count--;
			continue;
		}
		if (now_us() >= deadline)
			return 0;
		nap_us(100);
	}
	return 1;
}

static uint64_t own_events(struct seal_gate *gate, const struct stat *st)
{
	struct file *file;
	uint64_t count = 0;

	pthread_mutex_lock(&gate->lock);
	file = find_file(gate, st->st_dev, st->st_ino);
	if (file)
		count = file->own_events;
	pthread_mutex_unlock(&gate->lock);
	return count;
}

int seal_gate_sees(struct seal_gate *gate, int fd)
{
	int flags = fcntl(fd, F_GETFL);
	uint64_t before;
	struct stat st;
	char nothing;
	ssize_t n;

	if (flags < 0 || fstat(fd, &st) < 0)
		return -errno;
	before = own_events(gate, &st);
	/* The permission hook comes before the kernel looks at the length (fs/read_write.c). */
	if ((flags & O_ACCMODE) == O_WRONLY)
		n = pwrite(fd, &nothing, 0, 0);
	else
		n = pread(fd, &nothing, 0, 0);
	if (n < 0)
		return -errno;
	return own_events(gate, &st) != before;
}

size_t seal_gate_reports(struct seal_gate *gate, struct seal_report *out, size_t max)
{
	eventfd_t count;
	size_t n;

	pthread_mutex_lock(&gate->lock);
	n = gate->report_count < max ? gate->report_count : max;
	memcpy(out, gate->reports, n * sizeof(*out));
	gate->report_count -= n;
	memmove(gate->reports, gate->reports + n, gate->report_count * sizeof(*out));
	if (gate->report_count == 0)
		eventfd_read(gate->notify, &count);
	pthread_mutex_unlock(&gate->lock);
	return n;
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
	int result = -ENOENT;

	if (!is_deniable(error))
		return -EINVAL;
	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS && result; i++)
		for (struct file *file = gate->files[i]; file && result; file = file->next)
			for (struct waiter **at = &file->waiters; *at; at = &(*at)->next)
				if ((*at)->id == id) {
					struct waiter *waiter = *at;

					*at = waiter->next;
					finish(gate, waiter, error);
					result = 0;
					break;
				}
	pthread_mutex_unlock(&gate->lock);
	return result;
}

void seal_gate_count(struct seal_gate *gate, struct seal_gate_counters *out)
{
	pthread_mutex_lock(&gate->lock);
	*out = gate->counters;
	pthread_mutex_unlock(&gate->lock);
}

/* A fanotify group of its own, since it asks about directories of whole file systems. */
#include "sealsvc/overlays.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "sealsvc/task_look.h"

/* Since v6.0 (include/uapi/linux/fanotify.h); older headers lack it. */
#ifndef FAN_MARK_IGNORE_SURV
#define FAN_MARK_IGNORE_SURV (0x00000400 | FAN_MARK_IGNORED_SURV_MODIFY)
#endif
#define MOUNTER_CAPABILITY 21 /* CAP_SYS_ADMIN */
#define TASKS 4		      /* whose files of /proc are kept open */
#define WAITING_MAX 4096      /* tasks that are on their way to sleep */
#define AGAIN_MS 1	      /* between looks at these */
#define IDLE_MS 200	      /* between looks whether to stop */

struct asked {
	int fd;
	int32_t tid;
};

struct seal_overlays {
	int group;
	pthread_t thread;
	struct seal_task_looker looker;
	struct seal_stack stack;
	struct stat users; /* our own user namespace */
	int64_t refused;
	int stopping;
	size_t waiting;
	struct asked unsettled[WAITING_MAX];
};

/* 0: the task is on its way to sleep, and is to be looked at once more. A look does not block here: what
 * holds the task's exec_update_lock for long is an execve(2) of its process, which first waits for this
 * thread, that waits for us, to end. */
static int look(struct seal_overlays *overlays, int32_t tid)
{
	const struct seal_stack *stack = &overlays->stack;

	seal_stack_read(&overlays->looker, tid, &overlays->stack);
	return stack->state == SEAL_TASK_GONE ||
	       (stack->count && strncmp(stack->frame[0], "fanotify_", 9) == 0);
}

/* Is it proven that the task is not mounting anything? vfs_get_tree() calls every file system's
 * ->get_tree, and ovl_fill_super() is called by pointer: neither can be missing in the stack. */
static int is_harmless(const struct seal_overlays *overlays)
{
	const struct seal_stack *stack = &overlays->stack;

	if (stack->state == SEAL_TASK_GONE || stack->count == SEAL_STACK_FRAMES)
		return 0;
	for (unsigned i = 0; i < stack->count; i++)
		if (strcmp(stack->frame[i], "vfs_get_tree") == 0 ||
		    strcmp(stack->frame[i], "ovl_fill_super") == 0)
			return 0;
	return 1;
}

/* Capabilities are of the task's user namespace, which ovl_fill_super() wants to be that of the super
 * block. */
static int is_administrator(const struct seal_overlays *overlays, int32_t tid)
{
	unsigned long long effective = 0;
	char path[40], line[256];
	struct stat users;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/ns/user", tid);
	if (stat(path, &users) < 0 || users.st_ino != overlays->users.st_ino ||
	    users.st_dev != overlays->users.st_dev)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	status = fopen(path, "re");
	if (!status)
		return 0;
	while (fgets(line, sizeof(line), status))
		if (sscanf(line, "CapEff: %llx", &effective) == 1)
			break;
	fclose(status);
	return effective >> MOUNTER_CAPABILITY & 1;
}

static void answer(struct seal_overlays *overlays, const struct asked *asked, int allow)
{
	struct fanotify_response response = {.fd = asked->fd, .response = FAN_ALLOW};

	if (!allow) {
		response.response = FAN_DENY;
		__atomic_fetch_add(&overlays->refused, 1, __ATOMIC_RELAXED);
	}
	/* ENOENT: the caller was killed meanwhile. */
	while (write(overlays->group, &response, sizeof(response)) < 0 && errno == EINTR)
		;
	close(asked->fd);
}

/* 1 when it was answered. */
static int judge(struct seal_overlays *overlays, const struct asked *asked)
{
	if (!look(overlays, asked->tid))
		return 0;
	answer(overlays, asked, is_harmless(overlays) || is_administrator(overlays, asked->tid));
	return 1;
}

static void read_events(struct seal_overlays *overlays)
{
	char buffer[4096] __attribute__((aligned(8)));
	const struct fanotify_event_metadata *event = (void *)buffer;
	ssize_t left = read(overlays->group, buffer, sizeof(buffer));

	for (; left > 0 && FAN_EVENT_OK(event, left); event = FAN_EVENT_NEXT(event, left)) {
		struct asked asked = {event->fd, event->pid};

		if (asked.fd < 0 || judge(overlays, &asked))
			continue;
		if (overlays->waiting < WAITING_MAX)
			overlays->unsettled[overlays->waiting++] = asked;
		else
			answer(overlays, &asked, 0);
	}
}

static void *answer_all(void *argument)
{
	struct seal_overlays *overlays = argument;
	struct pollfd readable = {.fd = overlays->group, .events = POLLIN};

	pthread_setname_np(pthread_self(), "seal-overlays");
	while (!__atomic_load_n(&overlays->stopping, __ATOMIC_ACQUIRE)) {
		size_t waiting = 0;

		if (poll(&readable, 1, overlays->waiting ? AGAIN_MS : IDLE_MS) > 0)
			read_events(overlays);
		for (size_t i = 0; i < overlays->waiting; i++)
			if (!judge(overlays, &overlays->unsettled[i]))
				overlays->unsettled[waiting++] = overlays->unsettled[i];
		overlays->waiting = waiting;
	}
	return NULL;
}

/* Without CONFIG_STACKTRACE and names of functions in it, every open would be a mount. */
static int shows_stacks(void)
{
	char text[4096];
	int fd = open("/proc/self/stack", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[n < 0 ? 0 : n] = '\0';
	return strstr(text, "_read") != NULL;
}

int seal_overlays_open(struct seal_overlays **out)
{
	unsigned flags = FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE | FAN_REPORT_TID;
	struct seal_overlays *overlays = calloc(1, sizeof(*overlays));
	sigset_t all, before;
	int error = 0;

	if (!overlays)
		return -ENOMEM;
	if (!shows_stacks()) {
		free(overlays);
		return -EOPNOTSUPP;
	}
	seal_task_looker_init(&overlays->looker, TASKS);
	overlays->group = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (overlays->group < 0 || stat("/proc/self/ns/user", &overlays->users) < 0)
		error = -errno;
	if (!error) {
		sigfillset(&all);
		pthread_sigmask(SIG_SETMASK, &all, &before);
		error = -pthread_create(&overlays->thread, NULL, answer_all, overlays);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (error) {
		if (overlays->group >= 0)
			close(overlays->group);
		free(overlays);
		return error;
	}
	*out = overlays;
	return 0;
}

void seal_overlays_close(struct seal_overlays *overlays)
{
	__atomic_store_n(&overlays->stopping, 1, __ATOMIC_RELEASE);
	pthread_join(overlays->thread, NULL);
	close(overlays->group); /* the kernel lets whoever waits go on */
	seal_task_looker_close(&overlays->looker);
	free(overlays);
}

/* A mark goes with its super block, and the device number may be another's then: the kernel is asked. 1, 0
 * or -errno. */
static int is_marked(const struct seal_overlays *overlays, dev_t device)
{
	unsigned marked, wanted = major(device) << 20 | minor(device); /* MKDEV of linux/kdev_t.h */
	char path[48], line[256];
	int found = 0;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", overlays->group);
	info = fopen(path, "re");
	if (!info)
		return -errno;
	while (!found && fgets(line, sizeof(line), info))
		found = sscanf(line, "fanotify sdev:%x", &marked) == 1 && marked == wanted;
	fclose(info);
	return found;
}

int seal_overlays_refuse(struct seal_overlays *overlays, int fd)
{
	char path[40];
	struct stat st;
	int marked;

	if (fstat(fd, &st) < 0)
		return -errno;
	marked = is_marked(overlays, st.st_dev);
	if (marked)
		return marked;
	/* A path, since a super block is marked through one. Without FAN_ONDIR the second ignores opens of
	 * all but directories. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fanotify_mark(overlays->group,
			  FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_IGNORE_SURV, FAN_OPEN_PERM,
			  AT_FDCWD, path) < 0 ||
	    fanotify_mark(overlays->group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
			  FAN_OPEN_PERM | FAN_ONDIR, AT_FDCWD, path) < 0)
		return -errno;
	return 0;
}

int64_t seal_overlays_refused(const struct seal_overlays *overlays)
{
	return __atomic_load_n(&overlays->refused, __ATOMIC_RELAXED);
}

/* Who waits: the users and processes of waiters, and how many of them there may be. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

struct user {
	struct user *next;
	uint32_t uid;
	unsigned waiters;
};

/* A process with waiters. One pidfd for all of them: descriptors are what many waiters use up. */
struct process {
	struct process *next;
	uint64_t
		number; /* in the epoll set: the process id, and a count that tells users of it apart */
	struct list waiters; /* by place_of_process */
	int32_t tgid;
	int pidfd;
};

int gate_has_room(const struct seal_gate *gate, const struct file *file, int event_fd)
{
	/* The lowest free number is taken, so that a high one says how many are in use. */
	if (file->waiter_count >= WAITERS_OF_FILE || gate->counters.waiters >= WAITERS_IN_ALL ||
	    event_fd >= gate->descriptors)
		return -EAGAIN;
	return 0;
}

static struct user **user_of(struct seal_gate *gate, uint32_t uid)
{
	struct user **at = &gate->users[uid % PROCESSES];

	while (*at && (*at)->uid != uid)
		at = &(*at)->next;
	return at;
}

static int count_user(struct seal_gate *gate, struct waiter *waiter)
{
	struct user **at = user_of(gate, waiter->report.uid), *user = *at;

	if (!user) {
		user = calloc(1, sizeof(*user));
		if (!user)
			return -EAGAIN;
		user->uid = waiter->report.uid;
		*at = user;
	}
	if (user->uid && user->waiters >= WAITERS_OF_USER)
		return -EAGAIN;
	user->waiters++;
	waiter->user = user;
	return 0;
}

static struct process **process_of(struct seal_gate *gate, int32_t tgid)
{
	struct process **at = &gate->processes[(uint32_t)tgid % PROCESSES];

	while (*at && (*at)->tgid != tgid)
		at = &(*at)->next;
	return at;
}

/* Without a pidfd the end of a waiter is merely noticed later. */
static int follow(struct seal_gate *gate, struct waiter *waiter)
{
	struct process **at = process_of(gate, waiter->report.tgid), *process = *at;
	struct epoll_event event = {.events = EPOLLIN};

	if (!process) {
		int pidfd = (int)syscall(SYS_pidfd_open, waiter->report.tgid, 0);

		if (pidfd < 0)
			return errno == ESRCH ? -ESRCH : 0;
		process = calloc(1, sizeof(*process));
		event.data.u64 = (uint64_t)waiter->report.tgid << 32 | ++gate->next_process;
		if (!process || epoll_ctl(gate->epoll, EPOLL_CTL_ADD, pidfd, &event) < 0) {
			close(pidfd);
			free(process);
			return 0;
		}
		process->number = event.data.u64;
		list_init(&process->waiters);
		process->tgid = waiter->report.tgid;
		process->pidfd = pidfd;
		*at = process;
	}
	list_append(&process->waiters, &waiter->place_of_process);
	waiter->process = process;
	return 0;
}

int gate_enrol(struct seal_gate *gate, struct waiter *waiter)
{
	int error = count_user(gate, waiter);

	return error ? error : follow(gate, waiter);
}

void gate_strike_off(struct seal_gate *gate, struct waiter *waiter)
{
	struct user *user = waiter->user;
	struct process *process = waiter->process;

	if (user && !--user->waiters) {
		*user_of(gate, user->uid) = user->next;
		free(user);
	}
	list_remove(&waiter->place_of_process);
	if (process && list_is_empty(&process->waiters)) {
		*process_of(gate, process->tgid) = process->next;
		close(process->pidfd); /* leaves the epoll set with it */
		free(process);
	}
}

struct waiter *gate_waiter_of_process(struct seal_gate *gate, uint64_t number)
{
	struct process *process = *process_of(gate, (int32_t)(number >> 32));

	if (!process || process->number != number)
		return NULL;
	LIST_EACH(waiter, &process->waiters, struct waiter, place_of_process)
	if (waiter->state == WAITER_HELD)
		return waiter;
	return NULL;
}

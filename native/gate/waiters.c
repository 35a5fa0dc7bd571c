/* Judging operations, and holding, answering and reporting those that conflict. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "sealsvc/procfs.h"
#include "sealsvc/proof.h"

#define GREETS_LATER_NS 10000000
#define FAN_DENY_WITH(error) (FAN_DENY | ((uint32_t)(error) << 24))

uint64_t gate_now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int gate_in_process(int32_t tgid, int32_t tid)
{
	return tgid > 0 && syscall(SYS_tgkill, tgid, tid, 0) == 0;
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
void gate_respond(struct seal_gate *gate, int event_fd, int error)
{
	answer(gate, event_fd, error);
	close(event_fd);
}

/* Let one go on from the reader thread itself, which takes no other event meanwhile. Closing first
 * has our description of the file gone before its caller can look who else has it open. */
void gate_pass(struct seal_gate *gate, int event_fd)
{
	close(event_fd);
	answer(gate, event_fd, 0);
}

static void meet(struct verdict *verdict, int policy, int error)
{
	verdict->error = seal_prevailing_errno(verdict->error, error);
	if (policy > verdict->policy)
		verdict->policy = policy;
}

static int is_absolved(const struct waiter *waiter, uint64_t id)
{
	for (unsigned i = 0; waiter && i < waiter->absolved_count; i++)
		if (waiter->absolved[i] == id)
			return 1;
	return 0;
}

/* A registration: its seals are not ours to know. */
static void ask_watch(const struct seal_gate *gate, const struct file *file,
		      const struct seal_guard *guard, const struct seal_operation *operation,
		      int own, const struct waiter *waiter, struct verdict *verdict)
{
	uint64_t unproven = 0;
	int error = 0, policy = SEAL_POLICY_WAIT;

	if (gate->judge)
		policy = gate->judge(gate->judge_context, guard->watch, operation, &file->traits,
				     own, is_absolved(waiter, guard->id), &error, &unproven);
	if (unproven && gate->prover >= 0 && !seal_is_mapped(gate->prover, file->path_fd)) {
		unproven = 0;
		policy = gate->judge(gate->judge_context, guard->watch, operation, &file->traits,
				     own, 1, &error, &unproven);
	}
	/* The proof is asked for last: what waits for a seal can change until then. */
	if (unproven && verdict->policy < 0)
		verdict->unproven = unproven;
	else if (policy >= 0 && !unproven)
		verdict->unproven = 0;
	if (unproven)
		verdict->is_told = 0;
	meet(verdict, policy, error);
}

/* A holder's own conflict is answered at once: it cannot be recalled while it is stopped here (EDEADLK
 * is what one would want; fanotify cannot send it). */
struct verdict gate_judge(const struct seal_gate *gate, const struct file *file,
			  const struct seal_operation *operation, const struct waiter *waiter)
{
	struct verdict verdict = {.policy = -1, .is_told = 1};

	for (size_t i = 0; i < file->guard_count; i++) {
		const struct seal_guard *guard = &file->guards[i];
		int own, error = 0;

		if (!seal_conflicts(operation, guard, &file->traits, 1) &&
		    !seal_conflicts(operation, guard, &file->traits, 0))
			continue;
		own = gate_in_process(guard->holder, operation->tid);
		if (!seal_conflicts(operation, guard, &file->traits, own))
			continue;
		if (guard->policy == SEAL_POLICY_WATCH) {
			ask_watch(gate, file, guard, operation, own, waiter, &verdict);
			continue;
		}
		error = seal_policy_errno(guard->policy, own);
		verdict.unproven = verdict.is_told = 0;
		meet(&verdict, (int)guard->policy, error);
	}
	return verdict;
}

struct verdict gate_judge_first(struct seal_gate *gate, const struct file *file,
				const struct seal_operation *operation)
{
	struct verdict verdict;

	gate->outlet.postpone(gate->outlet.context, 1);
	verdict = gate_judge(gate, file, operation, NULL);
	gate->outlet.postpone(gate->outlet.context, 0);
	return verdict;
}

void gate_identify(struct seal_report *what)
{
	struct seal_task task;

	if (seal_task_read(what->operation.tid, &task) == 0) {
		what->tgid = task.tgid;
		what->uid = task.uid;
		memcpy(what->comm, task.comm, sizeof(what->comm));
	}
}

static void deliver(struct seal_gate *gate, const struct waiter *waiter)
{
	gate->outlet.deliver(gate->outlet.context, &waiter->report);
}

static void leave_fresh(struct seal_gate *gate, struct waiter *waiter)
{
	struct waiter **at = &gate->fresh;

	while (*at != waiter)
		at = &(*at)->next_fresh;
	*at = waiter->next_fresh;
	waiter->fresh = 0;
}

static void announce(struct seal_gate *gate, struct waiter *waiter)
{
	if (waiter->reported)
		return;
	waiter->reported = 1;
	waiter->report.kind = SEAL_REPORT_HELD;
	deliver(gate, waiter);
	gate->counters.held++;
}

/* End a waiter: answer it, report its end when its beginning was, and free it. */
void gate_finish(struct seal_gate *gate, struct waiter *waiter, int error)
{
	if (waiter->fresh) {
		/* It did wait, and somebody was recalled for it. */
		leave_fresh(gate, waiter);
		gate_identify(&waiter->report);
		announce(gate, waiter);
	}
	gate_respond(gate, waiter->event_fd, error == EINTR ? EPERM : error);
	if (waiter->pidfd >= 0)
		close(waiter->pidfd); /* leaves the epoll set with it */
	waiter->report.waited_us = gate_now_us() - waiter->since_us;
	waiter->report.result = error;
	if (waiter->reported) {
		waiter->report.kind = SEAL_REPORT_ENDED;
		deliver(gate, waiter);
	} else if (error && error != EINTR) {
		waiter->report.kind = SEAL_REPORT_REFUSED;
		waiter->report.waiter = 0;
		deliver(gate, waiter);
		gate->counters.refused++;
	}
	gate->counters.waiters--;
	free(waiter);
}

/* It conflicts with no seal; whether a registration's client still maps what it would change is for
 * the service to find out. */
static void ask_for_proof(struct seal_gate *gate, struct waiter *waiter, uint64_t unproven)
{
	if (waiter->asked == unproven)
		return;
	waiter->asked = waiter->report.unproven = unproven;
	waiter->report.kind = SEAL_REPORT_UNPROVEN;
	deliver(gate, waiter);
}

/* A grant of another service (a container's, say), whose threads have this name. It may hold us at its
 * own arming guard, as we would hold it at ours: two that wait for each other wait for ever. So it is
 * refused, and its client tries again. Whoever else calls itself so gets no more than EBUSY. */
static int is_kin(const struct seal_report *who)
{
	return who->uid == 0 && strcmp(who->comm, SEAL_SERVICE_COMM) == 0;
}

/* Judge a held operation anew. Returns 1 when it has ended and is gone. */
static int settle(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	struct verdict verdict = gate_judge(gate, file, &waiter->report.operation, waiter);

	if (verdict.policy < 0 && seal_changes_maps(waiter->report.operation.op, &file->traits))
		gate_passage_begins(gate, file, waiter->event.tid, &waiter->call);
	if (verdict.policy < 0)
		gate_touch(gate, file, &waiter->report.operation);
	if (verdict.policy < 0 || verdict.error) {
		gate_finish(gate, waiter, verdict.policy < 0 ? 0 : verdict.error);
		return 1;
	}
	if (waiter->fresh) {
		if (!verdict.is_told)
			eventfd_write(gate->wake, 1); /* the minder is to come to it now */
		return 0;
	}
	if (verdict.unproven)
		ask_for_proof(gate, waiter, verdict.unproven);
	else if (verdict.policy != SEAL_POLICY_ARMING)
		announce(gate, waiter);
	else if (is_kin(&waiter->report)) {
		gate_finish(gate, waiter, EBUSY);
		return 1;
	}
	return 0;
}

void gate_settle_all(struct seal_gate *gate, struct file *file)
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

void gate_announce_again(struct seal_gate *gate, struct file *file, const struct seal_guard *guard)
{
	for (struct waiter *waiter = file->waiters; waiter; waiter = waiter->next) {
		const struct seal_operation *operation = &waiter->report.operation;
		int own = gate_in_process(guard->holder, operation->tid);

		if (!waiter->reported || !seal_conflicts(operation, guard, &file->traits, own))
			continue;
		waiter->report.kind = SEAL_REPORT_HELD;
		deliver(gate, waiter);
	}
}

/* Follow the waiter's process, so that we learn when it is killed in the middle of its wait. */
static int follow(struct seal_gate *gate, struct waiter *waiter)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = waiter->id};

	waiter->pidfd = (int)syscall(SYS_pidfd_open, waiter->report.tgid, 0);
	if (waiter->pidfd < 0)
		return errno == ESRCH ? -ESRCH : 0; /* without one it is merely noticed later */
	return epoll_ctl(gate->epoll, EPOLL_CTL_ADD, waiter->pidfd, &event);
}

struct waiter *gate_new_waiter(struct seal_gate *gate, const struct seal_event *event, int event_fd,
			       const struct file *file)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));

	if (!waiter)
		return NULL;
	waiter->id = waiter->report.waiter = ++gate->next_waiter;
	waiter->since_us = gate_now_us();
	/* The kernel knows an event by its descriptor's number, which must stay taken. What it was open
	 * on would count as somebody who has the file open: nobody could be proven to be gone. */
	waiter->event_fd = dup3(gate->placeholder, event_fd, O_CLOEXEC);
	if (waiter->event_fd < 0)
		waiter->event_fd = event_fd;
	waiter->pidfd = -1;
	waiter->event = *event;
	waiter->report.device = file->device;
	waiter->report.inode = file->inode;
	gate->counters.waiters++;
	return waiter;
}

/* It is known who waits for what. */
static void introduce(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	if (settle(gate, file, waiter))
		return;
	if (follow(gate, waiter) == -ESRCH) {
		gate_finish(gate, waiter, EINTR);
		return;
	}
	waiter->next = file->waiters;
	file->waiters = waiter;
}

void gate_hold(struct seal_gate *gate, struct file *file, struct waiter *waiter,
	       const struct look *look)
{
	waiter->report.operation = look->operation;
	waiter->call = look->call;
	gate_identify(&waiter->report);
	introduce(gate, file, waiter);
	gate->outlet.flush(gate->outlet.context);
}

/* Neither the minder nor the service is woken: on the processor of a holder whose bell was rung just now
 * they may run first. A timer that is not near costs next to nothing to set; one that is takes as long
 * as all the rest where the timer is emulated. */
void gate_hold_fresh(struct seal_gate *gate, struct file *file, struct waiter *waiter,
		     const struct look *look)
{
	const struct itimerspec later = {.it_value.tv_nsec = GREETS_LATER_NS};
	struct waiter **at = &gate->fresh;

	waiter->report.operation = look->operation;
	waiter->call = look->call;
	waiter->fresh = 1;
	while (*at)
		at = &(*at)->next_fresh;
	*at = waiter;
	waiter->next = file->waiters;
	file->waiters = waiter;
	if (!gate->greets_later)
		gate->greets_later = timerfd_settime(gate->later, 0, &later, NULL) == 0;
	if (!gate->greets_later)
		eventfd_write(gate->wake, 1);
}

/* The first of those that came is known now. */
static void greet(struct seal_gate *gate, const struct seal_report *who)
{
	struct waiter *waiter = gate->fresh, **at;
	struct file *file = gate_find_file(gate, waiter->report.device, waiter->report.inode);

	leave_fresh(gate, waiter);
	waiter->report.tgid = who->tgid;
	waiter->report.uid = who->uid;
	memcpy(waiter->report.comm, who->comm, sizeof(who->comm));
	for (at = &file->waiters; *at != waiter;)
		at = &(*at)->next;
	*at = waiter->next;
	introduce(gate, file, waiter);
}

int gate_greet(struct seal_gate *gate)
{
	struct seal_report who = {.kind = 0};
	uint64_t id;

	if (!gate->fresh)
		return 0;
	id = gate->fresh->id;
	who.operation = gate->fresh->report.operation;
	pthread_mutex_unlock(&gate->lock);
	gate_identify(&who);
	pthread_mutex_lock(&gate->lock);
	if (gate->fresh && gate->fresh->id == id) /* else it has ended */
		greet(gate, &who);
	return 1;
}

void seal_gate_tell(struct seal_gate *gate)
{
	while (gate->fresh) {
		struct seal_report who = {.operation = gate->fresh->report.operation};

		gate_identify(&who);
		greet(gate, &who);
	}
}

struct waiter *gate_take_waiter(struct seal_gate *gate, uint64_t id)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			for (struct waiter **at = &file->waiters; *at; at = &(*at)->next)
				if ((*at)->id == id) {
					struct waiter *waiter = *at;

					*at = waiter->next;
					return waiter;
				}
	return NULL;
}

struct waiter *gate_find_waiter(struct seal_gate *gate, uint64_t id, struct file **out)
{
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			for (struct waiter *waiter = file->waiters; waiter; waiter = waiter->next)
				if (waiter->id == id) {
					*out = file;
					return waiter;
				}
	return NULL;
}

/* Holding, answering and reporting operations that conflict. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "internal.h"

#define GREETS_LATER_NS 10000000

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

/* A thread of the kernel's NFS server. It serves other clients, of other files, as soon as it has an answer,
 * and there are few of it: it must not be kept. Who is no kernel thread and calls itself so gets EAGAIN
 * where it would have waited. */
static int is_server(const struct seal_report *who)
{
	return who->uid == 0 && strcmp(who->comm, "nfsd") == 0;
}

/* What the caller is told. EBUSY is no error that the NFS server knows: it warns of it in the kernel's log
 * (nfserrno() in fs/nfsd/vfs.c), and its client gets EIO for it as for ETXTBSY. */
static int told(const struct waiter *waiter, int error)
{
	if (error == EINTR)
		return EPERM;
	return error == EBUSY && is_server(&waiter->report) ? ETXTBSY : error;
}

/* A server is told to try again as soon as the recall has begun: nobody is refused, and nothing crowded. */
static int tries_again(const struct waiter *waiter, int error)
{
	return error == EAGAIN && is_server(&waiter->report);
}

/* End a waiter: report its end when its beginning was, and have it answered. */
void gate_finish(struct seal_gate *gate, struct waiter *waiter, int error)
{
	if (waiter->fresh) {
		/* It did wait, and somebody was recalled for it. */
		leave_fresh(gate, waiter);
		gate_identify(&waiter->report);
		announce(gate, waiter);
	}
	waiter->report.waited_us = gate_now_us() - waiter->since_us;
	waiter->report.result = error;
	if (waiter->reported) {
		waiter->report.kind = SEAL_REPORT_ENDED;
		deliver(gate, waiter);
	} else if (error && error != EINTR && !tries_again(waiter, error)) {
		waiter->report.kind = SEAL_REPORT_REFUSED;
		waiter->report.waiter = 0;
		deliver(gate, waiter);
		gate->counters.refused++;
	}
	if (error == EAGAIN && !tries_again(waiter, error))
		gate->counters.crowded++;
	gate_forget_waiter(gate, waiter);
	waiter->answer = told(waiter, error);
	waiter->next = gate->answers;
	gate->answers = waiter;
}

void gate_forget_waiter(struct seal_gate *gate, struct waiter *waiter)
{
	struct waiter **at = &gate->by_id[waiter->id % BUCKETS];

	while (*at != waiter)
		at = &(*at)->next_by_id;
	*at = waiter->next_by_id;
	gate_strike_off(gate, waiter);
	gate->waiting[waiter->shard]--;
	gate->counters.waiters--;
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

	waiter->judged = file->changes;
	if (verdict.policy < 0 && seal_changes_maps(waiter->report.operation.op, &file->traits))
		verdict.error = -gate_passage_begins(gate, file, waiter->event.tid, &waiter->call);
	if (verdict.policy < 0 && !verdict.error)
		gate_touch(gate, file, &waiter->report.operation);
	if (verdict.policy < 0 || verdict.error) {
		gate_finish(gate, waiter, verdict.error);
		return 1;
	}
	if (waiter->fresh) {
		if (!verdict.is_told)
			eventfd_write(gate->wake, 1); /* the minder is to come to it now */
		return 0;
	}
	if (verdict.unproven) {
		ask_for_proof(gate, waiter, verdict.unproven);
		return 0;
	}
	if (verdict.policy != SEAL_POLICY_ARMING)
		announce(gate, waiter);
	if (is_server(&waiter->report)) {
		/* NFS4ERR_DELAY: its client asks again until the recall is over. */
		gate_finish(gate, waiter, EAGAIN);
		return 1;
	}
	if (verdict.policy == SEAL_POLICY_ARMING && is_kin(&waiter->report)) {
		gate_finish(gate, waiter, EBUSY);
		return 1;
	}
	return 0;
}

/* A batch of the file's waiters. 0: all have been judged since its guards changed last. */
static int settle_batch(struct seal_gate *gate, struct file *file)
{
	struct waiter **at = &file->waiters, *waiter;
	unsigned count = 0;

	while ((waiter = *at)) {
		struct waiter *next = waiter->next;

		if (waiter->judged == file->changes) {
			at = &waiter->next;
			continue;
		}
		if (count++ == BATCH)
			return 1;
		if (settle(gate, file, waiter)) {
			*at = next;
			file->waiter_count--;
		} else {
			at = &waiter->next;
		}
	}
	return 0;
}

void gate_settle_all(struct seal_gate *gate, struct file *file)
{
	file->changes++;
	if (!settle_batch(gate, file) || file->unsettled)
		return;
	file->unsettled = 1;
	file->next_unsettled = gate->unsettled;
	gate->unsettled = file;
	eventfd_write(gate->wake, 1);
}

int gate_settle_some(struct seal_gate *gate)
{
	struct file *file = gate->unsettled;

	for (unsigned i = 0; i < BATCH && gate->released; i++) {
		struct waiter *waiter = gate->released;

		gate->released = waiter->next;
		gate_finish(gate, waiter, 0);
	}
	if (file && !settle_batch(gate, file)) {
		gate->unsettled = file->next_unsettled;
		file->unsettled = 0;
	}
	return gate->released || gate->unsettled;
}

/* Nothing is guarded there any more: what the minder has not come to yet goes on. */
void gate_release_waiters(struct seal_gate *gate, struct file *file)
{
	struct file **at = &gate->unsettled;

	while (file->waiters) {
		struct waiter *waiter = file->waiters;

		file->waiters = waiter->next;
		if (waiter->fresh)
			leave_fresh(gate, waiter);
		waiter->next = gate->released;
		gate->released = waiter;
	}
	while (*at && *at != file)
		at = &(*at)->next_unsettled;
	if (*at)
		*at = file->next_unsettled;
	if (gate->released)
		eventfd_write(gate->wake, 1);
}

void gate_tell_again(struct seal_gate *gate, struct waiter *waiter, int kind)
{
	waiter->report.kind = kind;
	waiter->report.waited_us = gate_now_us() - waiter->since_us;
	deliver(gate, waiter);
}

void gate_announce_again(struct seal_gate *gate, struct file *file, const struct seal_guard *guard)
{
	for (struct waiter *waiter = file->waiters; waiter; waiter = waiter->next) {
		const struct seal_operation *operation = &waiter->report.operation;
		int own = gate_in_process(guard->holder, operation->tid);

		if (!waiter->reported || !seal_conflicts(operation, guard, &file->traits, own))
			continue;
		gate_tell_again(gate, waiter, SEAL_REPORT_HELD);
	}
}

struct waiter *gate_new_waiter(struct seal_gate *gate, const struct file *file, int shard,
			       const struct seal_event *event, int event_fd)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));
	struct waiter **at;

	if (!waiter)
		return NULL;
	waiter->id = waiter->report.waiter = ++gate->next_waiter;
	waiter->since_us = gate_now_us();
	/* The kernel knows an event by its descriptor's number, which must stay taken. What it was open
	 * on would count as somebody who has the file open: nobody could be proven to be gone. */
	waiter->event_fd = dup3(gate->placeholder, event_fd, O_CLOEXEC);
	if (waiter->event_fd < 0)
		waiter->event_fd = event_fd;
	waiter->event = *event;
	waiter->shard = shard;
	waiter->report.device = file->device;
	waiter->report.inode = file->inode;
	at = &gate->by_id[waiter->id % BUCKETS];
	waiter->next_by_id = *at;
	*at = waiter;
	gate->waiting[shard]++;
	gate->counters.waiters++;
	return waiter;
}

static void add(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	waiter->next = file->waiters;
	file->waiters = waiter;
	file->waiter_count++;
	if (file->waiter_count >= CROWD &&
	    (!file->shard || gate->waiting[file->shard] >= SHARD_FULL))
		gate_move_crowd(gate, file);
}

static void take_out(struct file *file, struct waiter *waiter)
{
	struct waiter **at = &file->waiters;

	while (*at != waiter)
		at = &(*at)->next;
	*at = waiter->next;
	file->waiter_count--;
}

/* It is known who waits for what. */
static void introduce(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	int error;

	if (settle(gate, file, waiter))
		return;
	error = gate_enrol(gate, waiter);
	if (error)
		gate_finish(gate, waiter, error == -ESRCH ? EINTR : -error);
	else
		add(gate, file, waiter);
}

void gate_hold(struct seal_gate *gate, struct file *file, struct waiter *waiter,
	       const struct look *look)
{
	waiter->report.operation = look->operation;
	waiter->call = look->call;
	if (!waiter->report.tgid)
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
	add(gate, file, waiter);
	if (!gate->greets_later)
		gate->greets_later = timerfd_settime(gate->later, 0, &later, NULL) == 0;
	if (!gate->greets_later)
		eventfd_write(gate->wake, 1);
}

/* The first of those that came is known now. */
static void greet(struct seal_gate *gate, const struct seal_report *who)
{
	struct waiter *waiter = gate->fresh;
	struct file *file = gate_find_file(gate, waiter->report.device, waiter->report.inode);

	leave_fresh(gate, waiter);
	waiter->report.tgid = who->tgid;
	waiter->report.uid = who->uid;
	memcpy(waiter->report.comm, who->comm, sizeof(who->comm));
	take_out(file, waiter);
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
	if (gate->answers)
		eventfd_write(gate->wake, 1);
}

struct waiter *gate_find_waiter(struct seal_gate *gate, uint64_t id, struct file **out)
{
	struct waiter *waiter = gate->by_id[id % BUCKETS];

	while (waiter && waiter->id != id)
		waiter = waiter->next_by_id;
	if (!waiter)
		return NULL;
	*out = gate_find_file(gate, waiter->report.device, waiter->report.inode);
	for (struct waiter *at = *out ? (*out)->waiters : NULL; at; at = at->next)
		if (at == waiter)
			return waiter;
	return NULL; /* it is still to be looked at, or goes on just now */
}

struct waiter *gate_take_waiter(struct seal_gate *gate, uint64_t id)
{
	struct file *file;
	struct waiter *waiter = gate_find_waiter(gate, id, &file);

	if (waiter)
		take_out(file, waiter);
	return waiter;
}

/* The reader thread: what the kernel asks is answered at once, or held. It looks at tasks without the
 * lock; should a look not come back, the minder has another thread read on. */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

#ifndef FAN_EVENT_INFO_TYPE_RANGE
#define FAN_EVENT_INFO_TYPE_RANGE 6
#endif
#define LOOKS_AT_ONCE 50 /* at a task that is still on its way to sleep */

struct range_info { /* struct fanotify_event_info_range, since v6.14 */
	struct fanotify_event_info_header header;
	uint32_t pad;
	uint64_t offset, count;
};

#define HELD (-1) /* what else is decided of an event is the errno that its caller gets, or 0 */

/* There is no room for one more. The service hears of it once a second. */
static int refuse(struct seal_gate *gate, const struct file *file, const struct seal_event *event)
{
	const struct seal_report report = {
		.device = file->device,
		.inode = file->inode,
		.operation = {.op = event->is_open ? SEAL_OP_OPEN_HIDDEN : SEAL_OP_HIDDEN,
			      .tid = event->tid,
			      .offset = event->offset,
			      .length = event->length,
			      .syscall = -1},
		.kind = SEAL_REPORT_REFUSED,
		.result = EAGAIN,
	};
	uint64_t now = gate_now_us();

	gate->counters.refused++;
	gate->counters.crowded++;
	if (now - gate->crowd_told_us > 1000000) {
		gate->crowd_told_us = now;
		gate->outlet.deliver(gate->outlet.context, &report);
	}
	return EAGAIN;
}

/* The looker finds out what it is. NULL: there is no room. */
static struct waiter *hold_unseen(struct seat *seat, struct file *file,
				  const struct seal_event *event, int event_fd)
{
	struct seal_gate *gate = seat->gate;
	struct waiter *waiter = NULL;

	if (!gate_has_room(gate, file, event_fd))
		waiter = gate_new_waiter(gate, file, seat->shard, event, event_fd);
	if (!waiter)
		return NULL;
	gate_list_waiter(waiter, WAITER_UNSEEN, &gate->unseen);
	pthread_cond_signal(&gate->work);
	gate_start_ticks(gate);
	return waiter;
}

/* It conflicts, and no holder was told in judging: who it is must be known first, which is found out
 * without the lock. The file may be gone after that. */
static int hold_known(struct seat *seat, const struct stat *st, const struct seal_event *event,
		      const struct look *look, int event_fd)
{
	struct seal_gate *gate = seat->gate;
	struct seal_report who = {.operation = look->operation};
	struct waiter *waiter;
	struct file *file;

	pthread_mutex_unlock(&gate->lock);
	gate_identify(&who);
	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, st->st_dev, st->st_ino);
	if (!file)
		return 0;
	waiter = gate_new_waiter(gate, file, seat->shard, event, event_fd);
	if (!waiter) /* no memory to hold it with: refuse, fail closed */
		return refuse(gate, file, event);
	waiter->report.tgid = who.tgid;
	waiter->report.uid = who.uid;
	memcpy(waiter->report.comm, who.comm, sizeof(who.comm));
	gate_hold(gate, file, waiter, look);
	return HELD;
}

/* What the kernel asks about `file`, whose task was looked at (`seen`), or was not yet asleep. HELD, or
 * the answer. */
static int admit(struct seat *seat, struct file *file, const struct stat *st,
		 const struct seal_event *event, const struct look *look, int seen, int event_fd)
{
	struct seal_gate *gate = seat->gate;
	const struct seal_operation *operation = &look->operation;
	struct verdict verdict;
	struct waiter *waiter;

	gate_passages_end(file, event->tid);
	if (!seen)
		return hold_unseen(seat, file, event, event_fd) ? HELD : refuse(gate, file, event);
	verdict = gate_judge_first(gate, file, operation);
	if (verdict.policy < 0) {
		if (seal_changes_maps(operation->op, &file->traits) &&
		    gate_passage_begins(gate, file, event->tid, &look->call))
			return refuse(gate, file, event);
		gate_touch(gate, file, operation);
		return 0;
	}
	if (!verdict.error && gate_has_room(gate, file, event_fd))
		return refuse(gate, file, event);
	if (verdict.error || !verdict.is_told)
		return hold_known(seat, st, event, look, event_fd);
	waiter = gate_new_waiter(gate, file, seat->shard, event, event_fd);
	if (!waiter)
		return refuse(gate, file, event);
	gate_hold_fresh(gate, file, waiter, look);
	return HELD;
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

static int is_own(const struct seal_gate *gate, int32_t tid)
{
	return gate_in_process(gate->tgid, tid) ||
	       gate_in_process(__atomic_load_n(&gate->exempt, __ATOMIC_ACQUIRE), tid);
}

static int look_at(struct seat *seat, const struct seal_event *event, struct look *look)
{
	for (int i = 0; i < LOOKS_AT_ONCE; i++) {
		if (gate_look(&seat->looker, event, look))
			return 1;
		sched_yield();
	}
	return 0;
}

/* A task that could be looked at only now: its event waits as any other by now, or was given up. */
static void come_back(struct seat *seat, int seen, const struct look *look)
{
	struct seal_gate *gate = seat->gate;
	struct waiter *waiter = gate_find_waiter(gate, seat->waiter, WAITER_UNSEEN);

	if (!waiter)
		return;
	if (seen) {
		gate_judge_late(gate, waiter, look);
		return;
	}
	waiter->looked_at = 0;
	pthread_cond_signal(&gate->work);
}

/* One of a file that is watched. */
static int judge(struct seat *seat, const struct stat *st, const struct seal_event *event,
		 int event_fd)
{
	struct seal_gate *gate = seat->gate;
	struct file *file;
	struct look look;
	int seen = 1;

	if (gate->lost[SEAT_READER] < LOST_MAX) {
		gate_start_ticks(gate);
		gate_look_begins(seat, 0);
		pthread_mutex_unlock(&gate->lock);
		seen = look_at(seat, event, &look);
		pthread_mutex_lock(&gate->lock);
		if (!gate_look_ended(seat)) {
			come_back(seat, seen, &look);
			return HELD;
		}
	} else {
		gate_unseen(event, &look);
	}
	file = gate_find_file(gate, st->st_dev, st->st_ino);
	return file ? admit(seat, file, st, event, &look, seen, event_fd) : 0;
}

static void handle(struct seat *seat, const struct seal_event *event, int event_fd)
{
	struct seal_gate *gate = seat->gate;
	struct file *file = NULL;
	struct stat st;
	int known = fstat(event_fd, &st) == 0, own = is_own(gate, event->tid), answer = 0;

	pthread_mutex_lock(&gate->lock);
	gate->counters.events++;
	if (known)
		file = gate_find_file(gate, st.st_dev, st.st_ino);
	gate->counters.own += (uint64_t)own;
	if (file && own)
		file->own_events++;
	else if (file)
		answer = judge(seat, &st, event, event_fd);
	gate->counters.passed += answer == 0;
	gate_unlock(gate);
	if (answer > 0)
		gate_respond(gate, seat->shard, event_fd, answer);
	else if (answer == 0)
		gate_pass(gate, seat->shard, event_fd);
}

void gate_reader_lost(struct seal_gate *gate, struct seat *seat)
{
	const struct fanotify_event_metadata *meta = seat->at;
	ssize_t left = seat->left;
	int is_first = 1;

	for (; FAN_EVENT_OK(meta, left); meta = FAN_EVENT_NEXT(meta, left), is_first = 0) {
		struct file *file = NULL;
		struct waiter *waiter = NULL;
		struct seal_event event;
		struct stat st;

		if (meta->fd < 0)
			continue;
		parse(meta, &event);
		if (fstat(meta->fd, &st) == 0)
			file = gate_find_file(gate, st.st_dev, st.st_ino);
		if (file && !(is_own(gate, event.tid) && ++file->own_events)) {
			gate_passages_end(file, event.tid);
			waiter = hold_unseen(seat, file, &event, meta->fd);
			if (!waiter)
				gate_respond(gate, seat->shard, meta->fd,
					     refuse(gate, file, &event));
		} else {
			gate_pass(gate, seat->shard, meta->fd);
		}
		if (waiter && is_first) {
			waiter->looked_at = 1;
			seat->waiter = waiter->id;
		}
	}
}

/* Blocks in read(2), where it may be cancelled; the rest of the time it may not. */
void *gate_reader_main(void *argument)
{
	struct seat *seat = argument;
	int state;

	pthread_setname_np(pthread_self(), "seal-gate");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	while (!seat->lost) {
		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
		seat->left =
			read(seat->gate->groups[seat->shard], seat->buffer, sizeof(seat->buffer));
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
		seat->at = (void *)seat->buffer;
		while (!seat->lost && seat->left > 0 && FAN_EVENT_OK(seat->at, seat->left)) {
			struct seal_event event;

			parse(seat->at, &event);
			if (seat->at->fd >= 0)
				handle(seat, &event, seat->at->fd);
			if (!seat->lost)
				seat->at = FAN_EVENT_NEXT(seat->at, seat->left);
		}
	}
	seat->gate->outlet.flush(seat->gate->outlet.context);
	gate_leave_seat(seat);
	return NULL;
}

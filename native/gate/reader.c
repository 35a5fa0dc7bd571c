/* The reader thread: what the kernel asks is answered at once, or held. */
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

/* What the kernel asks about `file`, whose task was looked at (`seen`), or was not yet asleep. Returns 1
 * when it may go on at once. */
static int admit(struct seal_gate *gate, struct file *file, const struct seal_event *event,
		 const struct look *look, int seen, int event_fd)
{
	const struct seal_operation *operation = &look->operation;
	struct verdict verdict = {.policy = -1};
	struct waiter *waiter;

	gate_passages_end(file, event->tid);
	if (seen) {
		verdict = gate_judge_first(gate, file, operation);
		if (verdict.policy < 0) {
			if (seal_changes_maps(operation->op, &file->traits))
				gate_passage_begins(gate, file, event->tid, &look->call);
			gate_touch(gate, file, operation);
			return 1;
		}
	}
	waiter = gate_new_waiter(gate, event, event_fd, file);
	if (!waiter) { /* no memory to hold it with: refuse, fail closed */
		gate_respond(gate, event_fd, EBUSY);
	} else if (!seen) {
		waiter->next = gate->unseen;
		gate->unseen = waiter;
		eventfd_write(gate->wake, 1);
	} else if (verdict.error || !verdict.is_told) {
		gate_hold(gate, file, waiter, look);
	} else {
		gate_hold_fresh(gate, file, waiter, look);
	}
	return 0;
}

static int look_at(struct seal_gate *gate, const struct seal_event *event, struct look *look)
{
	for (int i = 0; i < LOOKS_AT_ONCE; i++) {
		if (gate_look(&gate->reader_looker, event, look))
			return 1;
		sched_yield();
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

static int is_watched(struct seal_gate *gate, const struct stat *st)
{
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, st->st_dev, st->st_ino);
	pthread_mutex_unlock(&gate->lock);
	return file != NULL;
}

static void handle(struct seal_gate *gate, const struct fanotify_event_metadata *meta)
{
	struct file *file = NULL;
	struct seal_event event;
	struct look look;
	struct stat st;
	int go_on = 1, known, own, seen = 0;

	if (meta->fd < 0)
		return;
	parse(meta, &event);
	own = gate_in_process(gate->tgid, event.tid) ||
	      gate_in_process(__atomic_load_n(&gate->exempt, __ATOMIC_ACQUIRE), event.tid);
	known = fstat(meta->fd, &st) == 0;
	if (known && !own && is_watched(gate, &st))
		seen = look_at(gate, &event, &look);
	pthread_mutex_lock(&gate->lock);
	gate->counters.events++;
	if (known)
		file = gate_find_file(gate, st.st_dev, st.st_ino);
	if (own) {
		gate->counters.own++;
		if (file)
			file->own_events++;
	} else if (file) {
		go_on = admit(gate, file, &event, &look, seen, meta->fd);
	}
	gate->counters.passed += (uint64_t)go_on;
	if (go_on)
		gate_pass(gate, meta->fd);
	pthread_mutex_unlock(&gate->lock);
}

/* Blocks in read(2), where it may be cancelled; the rest of the time it may not. */
void *gate_reader_main(void *argument)
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

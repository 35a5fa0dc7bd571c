/* The tripwire: what was let through on a guarded file and is no proven read is reported, once it had
 * time to end, and the service compares the maps of that file's seals. */
#include <string.h>
#include <sys/timerfd.h>

#include "internal.h"

#define TRIP_TICK_NS 100000000
#define REPORTS 64 /* at a tick; others come at the next one */
#define READS                                                                                      \
	(UINT64_C(1) << SEAL_OP_READ | UINT64_C(1) << SEAL_OP_OPEN | UINT64_C(1) << SEAL_OP_EXEC)

/* After the last operation; the later reports are for operations that took longer. */
static const uint64_t delays_us[TRIP_LOOKS] = {100000, 1000000, 5000000};

static void start_timer(struct seal_gate *gate)
{
	const struct itimerspec tick = {.it_value.tv_nsec = TRIP_TICK_NS};

	if (!gate->trip_runs)
		gate->trip_runs = timerfd_settime(gate->trip, 0, &tick, NULL) == 0;
}

static void append(struct seal_gate *gate, struct file *file)
{
	file->touch.is_listed = 1;
	file->touch.next = NULL;
	if (gate->touched)
		gate->last_touched->touch.next = file;
	else
		gate->touched = file;
	gate->last_touched = file;
	gate->touched_count++;
}

static void remove_behind(struct seal_gate *gate, struct file *before, struct file *file)
{
	if (before)
		before->touch.next = file->touch.next;
	else
		gate->touched = file->touch.next;
	if (gate->last_touched == file)
		gate->last_touched = before;
	file->touch.is_listed = 0;
	gate->touched_count--;
}

/* Of several operations, one that may change a map is the better evidence. */
static int is_better(const struct file *file, const struct seal_operation *operation)
{
	const struct touch *touch = &file->touch;

	return !touch->is_listed || touch->looks > 0 ||
	       seal_changes_maps(operation->op, &file->traits) ||
	       !seal_changes_maps(touch->operation.op, &file->traits);
}

void gate_touch(struct seal_gate *gate, struct file *file, const struct seal_operation *operation)
{
	if (!file->guards.count || (READS >> operation->op & 1))
		return;
	if (is_better(file, operation))
		file->touch.operation = *operation;
	if (!file->touch.is_listed || file->touch.looks > 0) {
		file->touch.looks = 0;
		file->touch.since_us = gate_now_us();
	}
	if (!file->touch.is_listed)
		append(gate, file);
	start_timer(gate);
}

void gate_untouch(struct seal_gate *gate, struct file *file)
{
	struct file *before = NULL;

	if (!file->touch.is_listed)
		return;
	for (struct file *at = gate->touched; at != file; at = at->touch.next)
		before = at;
	remove_behind(gate, before, file);
}

/* The first file of the queue goes to its end, or out of it with its last report. 0: it is not due. */
static int take_first(struct seal_gate *gate, uint64_t now, struct seal_report *out)
{
	struct file *file = gate->touched;
	struct touch *touch = &file->touch;
	int due = now - touch->since_us >= delays_us[touch->looks];

	remove_behind(gate, NULL, file);
	if (due) {
		memset(out, 0, sizeof(*out));
		out->kind = SEAL_REPORT_TOUCHED;
		out->device = file->device;
		out->inode = file->inode;
		out->operation = touch->operation;
		touch->looks++;
	}
	if (touch->looks < TRIP_LOOKS && file->guards.count)
		append(gate, file);
	return due;
}

void gate_report_touched(struct seal_gate *gate)
{
	uint64_t now = gate_now_us();
	unsigned reports = 0;

	/* Each file once; those that are touched meanwhile come behind them. */
	for (size_t left = gate->touched_count; left && gate->touched && reports < REPORTS;
	     left--) {
		struct seal_report report;

		if (!take_first(gate, now, &report))
			continue;
		reports++;
		/* Looking at a task may block: not with the lock held. */
		pthread_mutex_unlock(&gate->lock);
		gate_identify(&report);
		pthread_mutex_lock(&gate->lock);
		gate->outlet.deliver(gate->outlet.context, &report);
	}
	if (gate->touched)
		start_timer(gate);
}

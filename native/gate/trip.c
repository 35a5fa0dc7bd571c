/* The tripwire: what was let through on a guarded file and is no proven read is reported, once it had
 * time to end, and the service compares the maps of that file's seals. */
#include <string.h>
#include <sys/timerfd.h>

#include "internal.h"

#define TICK_NS 100000000
#define READS                                                                                      \
	(UINT64_C(1) << SEAL_OP_READ | UINT64_C(1) << SEAL_OP_OPEN | UINT64_C(1) << SEAL_OP_EXEC)

/* After the last operation; the later reports are for operations that took longer. */
static const uint64_t delays_us[TRIP_LOOKS] = {100000, 1000000, 5000000};

static void start_timer(struct seal_gate *gate)
{
	const struct itimerspec tick = {.it_value.tv_nsec = TICK_NS};

	if (!gate->trip_runs)
		gate->trip_runs = timerfd_settime(gate->trip, 0, &tick, NULL) == 0;
}

static void list(struct seal_gate *gate, struct file *file)
{
	if (file->touch.is_listed)
		return;
	file->touch.is_listed = 1;
	file->touch.next = gate->touched;
	gate->touched = file;
	start_timer(gate);
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
	if (!file->guard_count || (READS >> operation->op & 1))
		return;
	if (is_better(file, operation))
		file->touch.operation = *operation;
	if (!file->touch.is_listed || file->touch.looks > 0) {
		file->touch.looks = 0;
		file->touch.since_us = gate_now_us();
	}
	list(gate, file);
}

void gate_untouch(struct seal_gate *gate, struct file *file)
{
	struct file **at = &gate->touched;

	if (!file->touch.is_listed)
		return;
	while (*at != file)
		at = &(*at)->touch.next;
	*at = file->touch.next;
	file->touch.is_listed = 0;
}

/* The first file that is due, taken out of the list when this was its last report. */
static int take_due(struct seal_gate *gate, uint64_t now, struct seal_report *out)
{
	for (struct file *file = gate->touched; file; file = file->touch.next) {
		struct touch *touch = &file->touch;

		if (now - touch->since_us < delays_us[touch->looks])
			continue;
		memset(out, 0, sizeof(*out));
		out->kind = SEAL_REPORT_TOUCHED;
		out->device = file->device;
		out->inode = file->inode;
		out->operation = touch->operation;
		if (++touch->looks == TRIP_LOOKS || !file->guard_count)
			gate_untouch(gate, file);
		return 1;
	}
	return 0;
}

void gate_report_touched(struct seal_gate *gate)
{
	uint64_t now = gate_now_us();
	struct seal_report report;

	while (take_due(gate, now, &report)) {
		/* Looking at a task may block: not with the lock held. */
		pthread_mutex_unlock(&gate->lock);
		gate_identify(&report);
		pthread_mutex_lock(&gate->lock);
		gate->outlet.deliver(gate->outlet.context, &report);
	}
	if (gate->touched)
		start_timer(gate);
}

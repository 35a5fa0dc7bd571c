/* Operations that conflict are held: at once where it is known who they are, else as soon as the minder has found out. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "internal.h"

#define GREETS_LATER_NS 10000000

static void add(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	gate_list_waiter(waiter, WAITER_HELD, &file->waiters);
	waiter->file = file;
	file->waiter_count++;
	if (file->waiter_count >= CROWD &&
	    (!file->shard || gate->waiting[file->shard] >= SHARD_FULL))
		gate_move_crowd(gate, file);
}

/* It is known who waits for what. */
static void introduce(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	int error;

	if (gate_settle(gate, file, waiter))
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

	waiter->report.operation = look->operation;
	waiter->call = look->call;
	waiter->judged = file->changes;
	add(gate, file, waiter);
	waiter->fresh = 1;
	list_append(&gate->fresh, &waiter->place_fresh);
	if (!gate->greets_later)
		gate->greets_later = timerfd_settime(gate->later, 0, &later, NULL) == 0;
	if (!gate->greets_later)
		eventfd_write(gate->wake, 1);
}

/* It is known now who it is. */
static void greet(struct seal_gate *gate, struct waiter *waiter, const struct seal_report *who)
{
	struct file *file = waiter->file;

	waiter->report.tgid = who->tgid;
	waiter->report.uid = who->uid;
	memcpy(waiter->report.comm, who->comm, sizeof(who->comm));
	gate_unlist_waiter(waiter);
	introduce(gate, file, waiter);
}

int gate_greet(struct seal_gate *gate)
{
	struct waiter *waiter = LIST_FIRST(&gate->fresh, struct waiter, place_fresh);
	struct seal_report who = {.kind = 0};
	uint64_t id;

	if (!waiter)
		return 0;
	id = waiter->id;
	who.operation = waiter->report.operation;
	pthread_mutex_unlock(&gate->lock);
	gate_identify(&who);
	pthread_mutex_lock(&gate->lock);
	waiter = LIST_FIRST(&gate->fresh, struct waiter, place_fresh);
	if (waiter && waiter->id == id) /* else it has ended */
		greet(gate, waiter, &who);
	return 1;
}

void seal_gate_tell(struct seal_gate *gate)
{
	struct waiter *waiter;

	while ((waiter = LIST_FIRST(&gate->fresh, struct waiter, place_fresh))) {
		struct seal_report who = {.operation = waiter->report.operation};

		gate_identify(&who);
		greet(gate, waiter, &who);
	}
	if (!list_is_empty(&gate->answers))
		eventfd_write(gate->wake, 1);
}

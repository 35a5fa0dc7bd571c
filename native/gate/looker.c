/* The looker thread: looks at tasks that the reader did not wait for, and at those whose operations may
 * still be under way. As the reader's, its place is another's when a look does not come back. */
#include <time.h>

#include "internal.h"

#define LOOKS_LATER_NS 200000 /* between looks at tasks that are on their way to sleep */

struct waiter *gate_take_unseen(struct seal_gate *gate, uint64_t id)
{
	struct waiter **at = &gate->unseen, *waiter;

	while (*at && (*at)->id != id)
		at = &(*at)->next;
	waiter = *at;
	if (waiter)
		*at = waiter->next;
	return waiter;
}

void gate_judge_late(struct seal_gate *gate, struct waiter *waiter, const struct look *look)
{
	struct file *file = gate_find_file(gate, waiter->report.device, waiter->report.inode);
	struct verdict verdict;

	if (!file) {
		gate_finish(gate, waiter, 0);
		return;
	}
	verdict = gate_judge_first(gate, file, &look->operation);
	if (verdict.policy < 0 || verdict.error || !verdict.is_told)
		gate_hold(gate, file, waiter, look);
	else
		gate_hold_fresh(gate, file, waiter, look);
}

static void give_up(struct seal_gate *gate, uint64_t id)
{
	struct waiter *waiter = gate_take_unseen(gate, id);
	struct look look;

	gate_unseen(&waiter->event, &look);
	gate_judge_late(gate, waiter, &look);
}

void gate_give_up_looks(struct seal_gate *gate)
{
	uint64_t now = gate_now_us();
	struct waiter *waiter = gate->unseen;

	while (waiter) {
		struct waiter *next = waiter->next;

		if (now - waiter->since_us >= LOOK_LIMIT_US)
			give_up(gate, waiter->id);
		waiter = next;
	}
}

/* One look at one of them. 0: the place was lost. */
static int look_at(struct seat *seat, struct waiter *waiter)
{
	struct seal_gate *gate = seat->gate;
	struct seal_event event = waiter->event;
	uint64_t id = waiter->id;
	struct look look;
	int seen, stays;

	waiter->looked_at = 1;
	gate_look_begins(seat, id);
	pthread_mutex_unlock(&gate->lock);
	seen = gate_look(&seat->looker, &event, &look);
	pthread_mutex_lock(&gate->lock);
	stays = gate_look_ended(seat);
	for (waiter = gate->unseen; waiter && waiter->id != id;)
		waiter = waiter->next;
	if (!waiter)
		return stays; /* it was given up */
	waiter->looked_at = 0;
	if (seen)
		gate_judge_late(gate, gate_take_unseen(gate, id), &look);
	return stays;
}

/* Each that is waiting to be looked at, once. 0: the place was lost. */
static int look_at_all(struct seat *seat)
{
	struct seal_gate *gate = seat->gate;
	uint64_t before = gate->next_waiter + 1;

	for (;;) {
		struct waiter *waiter = NULL;

		/* Newer ones come first in the list; each look goes on from where the last one was. */
		for (struct waiter *at = gate->unseen; at && !waiter; at = at->next)
			if (at->id < before && !at->looked_at)
				waiter = at;
		if (!waiter)
			return 1;
		before = waiter->id;
		if (!look_at(seat, waiter))
			return 0;
	}
}

static int wants_looks(const struct seal_gate *gate)
{
	for (const struct waiter *at = gate->unseen; at; at = at->next)
		if (!at->looked_at)
			return 1;
	return gate->pruned != NULL;
}

void *gate_looker_main(void *argument)
{
	const struct timespec nap = {0, LOOKS_LATER_NS};
	struct seat *seat = argument;
	struct seal_gate *gate = seat->gate;
	int stays = 1;

	pthread_setname_np(pthread_self(), "seal-looker");
	pthread_mutex_lock(&gate->lock);
	while (stays && !gate->stopping) {
		if (!wants_looks(gate) || gate->lost[SEAT_LOOKER] >= LOST_MAX) {
			pthread_cond_wait(&gate->work, &gate->lock);
			continue;
		}
		gate_start_ticks(gate);
		stays = look_at_all(seat);
		if (stays && gate->pruned)
			stays = gate_prune_one(seat);
		if (stays && (gate->unseen || gate->answers)) {
			gate_unlock(gate);
			gate->outlet.flush(gate->outlet.context);
			nanosleep(&nap, NULL);
			pthread_mutex_lock(&gate->lock);
		}
	}
	gate_unlock(gate);
	gate->outlet.flush(gate->outlet.context);
	if (!stays)
		gate_leave_seat(seat);
	return NULL;
}

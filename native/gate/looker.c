/* The looker thread: looks at tasks that the reader did not wait for, and at those whose operations may
 * still be under way. As the reader's, its place is another's when a look does not come back. */
#include <time.h>

#include "internal.h"

#define LOOKS_LATER_NS 200000 /* between looks at tasks that are on their way to sleep */

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

static void give_up(struct seal_gate *gate, struct waiter *waiter)
{
	struct look look;

	gate_unseen(&waiter->event, &look);
	gate_judge_late(gate, waiter, &look);
}

void gate_give_up_looks(struct seal_gate *gate)
{
	uint64_t now = gate_now_us();

	for (struct list *at = gate->unseen.next, *next; at != &gate->unseen; at = next) {
		struct waiter *waiter = CONTAINER_OF(at, struct waiter, place);

		next = at->next;
		if (now - waiter->since_us >= LOOK_LIMIT_US)
			give_up(gate, waiter);
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
	waiter = gate_find_waiter(gate, id, WAITER_UNSEEN);
	if (!waiter)
		return stays; /* it was given up */
	waiter->looked_at = 0;
	if (seen)
		gate_judge_late(gate, waiter, &look);
	return stays;
}

/* Each that is waiting to be looked at, once: it goes behind the others. 0: the place was lost. */
static int look_at_all(struct seat *seat)
{
	struct seal_gate *gate = seat->gate;
	uint64_t round = ++gate->look_round;
	struct waiter *waiter;

	while ((waiter = LIST_FIRST(&gate->unseen, struct waiter, place)) &&
	       waiter->round != round) {
		waiter->round = round;
		list_remove(&waiter->place);
		list_append(&gate->unseen, &waiter->place);
		if (!waiter->looked_at && !look_at(seat, waiter))
			return 0;
	}
	return 1;
}

static int wants_looks(const struct seal_gate *gate)
{
	LIST_EACH(waiter, &gate->unseen, struct waiter, place)
	if (!waiter->looked_at)
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
		if (stays && (!list_is_empty(&gate->unseen) || !list_is_empty(&gate->answers))) {
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

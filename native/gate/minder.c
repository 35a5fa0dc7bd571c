/* The minder thread: tasks that were not yet asleep, waiters that are to be told of, those that
 * die, and the tripwire. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define LOOKS_LATER_US 200    /* between looks at a task that is on its way to sleep */
#define LOOKS_LIMIT_US 200000 /* then it is judged without being seen */

/* It is known now, as far as it ever will be, what the waiter is about to do. */
static void judge_late(struct seal_gate *gate, struct waiter *waiter, const struct look *look)
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

/* The lock is let go of for each look. Nobody else takes waiters out of the list. */
static void look_again(struct seal_gate *gate)
{
	struct waiter **at = &gate->unseen, *waiter;

	while ((waiter = *at)) {
		struct look look;
		int seen;

		pthread_mutex_unlock(&gate->lock);
		seen = gate_look(&gate->minder_looker, &waiter->event, &look);
		if (!seen && gate_now_us() - waiter->since_us >= LOOKS_LIMIT_US) {
			gate_unseen(&waiter->event, &look);
			seen = 1;
		}
		pthread_mutex_lock(&gate->lock);
		/* The reader may have put others before it. */
		while (*at != waiter)
			at = &(*at)->next;
		if (seen) {
			*at = waiter->next;
			judge_late(gate, waiter, &look);
		} else {
			at = &waiter->next;
		}
	}
}

static void greets_now(struct seal_gate *gate)
{
	uint64_t count;

	if (read(gate->later, &count, sizeof(count)) > 0)
		gate->greets_later = 0;
}

static void trip_ticks(struct seal_gate *gate)
{
	uint64_t count;

	if (read(gate->trip, &count, sizeof(count)) > 0)
		gate->trip_runs = 0;
	gate_report_touched(gate);
}

static void waiter_died(struct seal_gate *gate, uint64_t id)
{
	struct waiter *waiter = gate_take_waiter(gate, id);

	if (waiter)
		gate_finish(gate, waiter, EINTR);
}

void *gate_minder_main(void *argument)
{
	struct seal_gate *gate = argument;
	struct epoll_event events[32];
	int stopping = 0;

	pthread_setname_np(pthread_self(), "seal-minder");
	while (!stopping) {
		struct timespec nap = {0, LOOKS_LATER_US * 1000};
		eventfd_t count;
		int n, unseen;

		pthread_mutex_lock(&gate->lock);
		unseen = gate->unseen != NULL;
		pthread_mutex_unlock(&gate->lock);
		n = epoll_wait(gate->epoll, events, 32, unseen ? 0 : -1);
		if (unseen)
			nanosleep(&nap, NULL);
		pthread_mutex_lock(&gate->lock);
		for (int i = 0; i < n; i++)
			if (events[i].data.u64 == EVENT_WAKE)
				eventfd_read(gate->wake, &count);
			else if (events[i].data.u64 == EVENT_LATER)
				greets_now(gate);
			else if (events[i].data.u64 == EVENT_TRIP)
				trip_ticks(gate);
			else
				waiter_died(gate, events[i].data.u64);
		look_again(gate);
		while (gate_greet(gate))
			gate->outlet.flush(gate->outlet.context);
		stopping = gate->stopping;
		pthread_mutex_unlock(&gate->lock);
		gate->outlet.flush(gate->outlet.context);
	}
	return NULL;
}

/* The minder thread: waiters that are to be told of, those that die, those that are judged anew in
 * batches, the two threads that look, and the tripwire. It waits for nobody, and looks at no task. */
#include <errno.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

static void greets_now(struct seal_gate *gate)
{
	uint64_t count;

	if (read(gate->later, &count, sizeof(count)) > 0)
		gate->greets_later = 0;
}

static void tick(struct seal_gate *gate)
{
	uint64_t count;

	if (read(gate->ticks, &count, sizeof(count)) > 0)
		gate_tick(gate);
}

static void trip_ticks(struct seal_gate *gate)
{
	uint64_t count;

	if (read(gate->trip, &count, sizeof(count)) > 0)
		gate->trip_runs = 0;
	gate_report_touched(gate);
}

/* A process has ended: so do its waiters. A batch of them; the epoll set tells of it again while there are others. */
static void end_waiters_of(struct seal_gate *gate, uint64_t process)
{
	struct waiter *waiter;

	for (unsigned i = 0; i < BATCH && (waiter = gate_waiter_of_process(gate, process)); i++)
		gate_finish(gate, waiter, EINTR);
}

static void heed(struct seal_gate *gate, uint64_t event)
{
	eventfd_t count;

	if (event == EVENT_WAKE)
		eventfd_read(gate->wake, &count);
	else if (event == EVENT_LATER)
		greets_now(gate);
	else if (event == EVENT_TICK)
		tick(gate);
	else if (event == EVENT_TRIP)
		trip_ticks(gate);
	else
		end_waiters_of(gate, event);
}

void *gate_minder_main(void *argument)
{
	struct seal_gate *gate = argument;
	struct epoll_event events[32];
	int stopping = 0, more = 0;

	pthread_setname_np(pthread_self(), "seal-minder");
	while (!stopping) {
		int n = epoll_wait(gate->epoll, events, 32, more ? 0 : -1);

		pthread_mutex_lock(&gate->lock);
		for (int i = 0; i < n; i++)
			heed(gate, events[i].data.u64);
		while (gate_greet(gate))
			gate->outlet.flush(gate->outlet.context);
		more = gate_settle_some(gate);
		more |= gate_answer_some(gate);
		stopping = gate->stopping;
		pthread_mutex_unlock(&gate->lock);
		gate->outlet.flush(gate->outlet.context);
		if (more)
			sched_yield(); /* the reader is to have the lock in between */
	}
	return NULL;
}

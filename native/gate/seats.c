/* The places of the two threads that look at tasks. Who is stuck in a look loses its place to a new
 * thread, and ends when the look comes back. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/timerfd.h>

#include "internal.h"

int gate_take_seat(struct seal_gate *gate, enum seat_kind kind, int shard)
{
	struct seat *seat = calloc(1, sizeof(*seat));
	sigset_t all, before;
	int error;

	if (!seat)
		return -ENOMEM;
	seat->gate = gate;
	seat->kind = kind;
	seat->shard = shard;
	/* Where descriptors are few they are for waiters. */
	seal_task_looker_init(&seat->looker, gate->descriptors > 16384 ? 64 : 4);
	/* Signals are the main thread's business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&seat->thread, NULL, gate->seat_main[kind], seat);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		free(seat);
		return -error;
	}
	*(kind == SEAT_READER ? &gate->readers[shard] : &gate->looker) = seat;
	return 0;
}

void gate_start_ticks(struct seal_gate *gate)
{
	const struct itimerspec soon = {.it_value.tv_nsec = TICK_NS};

	if (!gate->ticking)
		gate->ticking = timerfd_settime(gate->ticks, 0, &soon, NULL) == 0;
}

void gate_look_begins(struct seat *seat, uint64_t waiter)
{
	seat->waiter = waiter;
	seat->look_since_us = gate_now_us();
}

int gate_look_ended(struct seat *seat)
{
	seat->look_since_us = 0;
	return !seat->lost;
}

void gate_leave_seat(struct seat *seat)
{
	struct seal_gate *gate = seat->gate;

	pthread_mutex_lock(&gate->lock);
	gate->lost[seat->kind]--;
	pthread_cond_signal(&gate->work);
	pthread_mutex_unlock(&gate->lock);
	seal_task_looker_close(&seat->looker);
	free(seat);
}

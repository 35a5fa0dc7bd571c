#include "gate.h"

#include <errno.h>
#include <time.h>

int gate_init(struct export_gate *gate, uint32_t *in_flight)
{
	pthread_condattr_t clock;
	int error;

	*gate = (struct export_gate){.in_flight = in_flight};
	error = pthread_condattr_init(&clock);
	if (error)
		return -error;
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	error = pthread_mutex_init(&gate->lock, NULL);
	if (!error)
		error = pthread_cond_init(&gate->opened, &clock);
	if (!error)
		error = pthread_cond_init(&gate->empty, NULL);
	pthread_condattr_destroy(&clock);
	return -error;
}

void gate_destroy(struct export_gate *gate)
{
	pthread_cond_destroy(&gate->empty);
	pthread_cond_destroy(&gate->opened);
	pthread_mutex_destroy(&gate->lock);
}

void gate_empty(struct export_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	pthread_cond_broadcast(&gate->empty);
	pthread_mutex_unlock(&gate->lock);
}

int gate_wait(struct export_gate *gate, uint64_t deadline)
{
	struct timespec until = {.tv_sec = (time_t)(deadline / 1000000000u),
				 .tv_nsec = (long)(deadline % 1000000000u)};
	int result = 0;

	pthread_mutex_lock(&gate->lock);
	while (!gate->ended && gate->closed && !result) {
		if (!deadline)
			pthread_cond_wait(&gate->opened, &gate->lock);
		else
			result = -pthread_cond_timedwait(&gate->opened, &gate->lock, &until);
	}
	if (gate->ended)
		result = -ESHUTDOWN;
	pthread_mutex_unlock(&gate->lock);
	return result;
}

void gate_close(struct export_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	__atomic_fetch_add(&gate->closed, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(gate->in_flight, __ATOMIC_SEQ_CST))
		pthread_cond_wait(&gate->empty, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

uint32_t gate_open(struct export_gate *gate)
{
	uint32_t left;

	pthread_mutex_lock(&gate->lock);
	left = __atomic_sub_fetch(&gate->closed, 1, __ATOMIC_SEQ_CST);
	if (!left)
		pthread_cond_broadcast(&gate->opened);
	pthread_mutex_unlock(&gate->lock);
	return left;
}

void gate_end(struct export_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->ended = 1;
	pthread_cond_broadcast(&gate->opened);
	pthread_mutex_unlock(&gate->lock);
}

int gate_has_ended(struct export_gate *gate)
{
	int ended;

	pthread_mutex_lock(&gate->lock);
	ended = gate->ended != 0;
	pthread_mutex_unlock(&gate->lock);
	return ended;
}

/* The gate that every request passes. While it is closed, new requests wait. The thread that closes it
 * waits until the requests under way have left. Pure: knows nothing of seals. */
#ifndef EXPORT_GATE_H
#define EXPORT_GATE_H

#include <pthread.h>
#include <stdint.h>

struct export_gate {
	uint32_t *in_flight; /* where everybody can see it */
	uint32_t closed;     /* how many want it closed */
	uint32_t ended;
	pthread_mutex_t lock;
	pthread_cond_t opened; /* of CLOCK_MONOTONIC */
	pthread_cond_t empty;
};

int gate_init(struct export_gate *gate, uint32_t *in_flight);
void gate_destroy(struct export_gate *gate);

/* 1: passed; to be left again. 0: closed. */
static inline int gate_try(struct export_gate *gate)
{
	/* Counts first and looks afterwards, as gate_close() closes first and counts afterwards: with
	 * both sequentially consistent one of the two sees the other. */
	__atomic_fetch_add(gate->in_flight, 1, __ATOMIC_SEQ_CST);
	return !__atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST);
}

void gate_empty(struct export_gate *gate);

static inline void gate_leave(struct export_gate *gate)
{
	uint32_t left = __atomic_sub_fetch(gate->in_flight, 1, __ATOMIC_SEQ_CST);

	if (!left && __atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST))
		gate_empty(gate);
}

/* Waits until it is open, or until `deadline` (ns of CLOCK_MONOTONIC; 0: for ever). 0, -ETIMEDOUT,
 * or -ESHUTDOWN. Nothing is passed by it: try again. */
int gate_wait(struct export_gate *gate, uint64_t deadline);

/* Close and return when nothing is under way. As often as it is closed it must be opened. */
void gate_close(struct export_gate *gate);
/* How many still want it closed. */
uint32_t gate_open(struct export_gate *gate);
/* Nobody waits any more, now or later. */
void gate_end(struct export_gate *gate);
int gate_has_ended(struct export_gate *gate);

#endif

/* The minder's look after the threads that look at tasks: who is stuck in one loses its place. */
#include <pthread.h>

#include "internal.h"

/* 1: nothing is to be looked after. A place without a thread (no memory, or no pids, at that time) is tried to be filled again. */
static int check(struct seal_gate *gate, struct seat **place, enum seat_kind kind, int shard)
{
	struct seat *seat = *place;

	if (seat && seat->look_since_us && gate_now_us() - seat->look_since_us > LOOK_STUCK_US &&
	    gate->lost[kind] < LOST_MAX) {
		seat->lost = 1;
		gate->lost[kind]++;
		gate->counters.lost_looks++;
		pthread_detach(seat->thread);
		*place = NULL;
		if (kind == SEAT_READER)
			gate_reader_lost(gate, seat);
	}
	if (!*place)
		gate_take_seat(gate, kind, shard);
	return *place && !(*place)->look_since_us;
}

/* Goes on while there is anything that could be stuck. */
void gate_tick(struct seal_gate *gate)
{
	int quiet = check(gate, &gate->looker, SEAT_LOOKER, 0);

	gate->ticking = 0;
	for (int i = 0; i < SHARDS && gate->groups[i] >= 0; i++)
		quiet &= check(gate, &gate->readers[i], SEAT_READER, i);
	gate_give_up_looks(gate);
	quiet = quiet && list_is_empty(&gate->unseen) && !gate->pruned &&
		gate->seen_tick == gate->counters.events;
	gate->seen_tick = gate->counters.events;
	if (!quiet)
		gate_start_ticks(gate);
}

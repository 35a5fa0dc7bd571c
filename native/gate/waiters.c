/* The table of held operations: by their ids, and each in the list that says what it waits for. */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

struct waiter *gate_new_waiter(struct seal_gate *gate, const struct file *file, int shard,
			       const struct seal_event *event, int event_fd)
{
	struct waiter *waiter = calloc(1, sizeof(*waiter));

	if (!waiter)
		return NULL;
	waiter->id = waiter->report.waiter = ++gate->next_waiter;
	waiter->since_us = gate_now_us();
	/* The kernel knows an event by its descriptor's number, which must stay taken. What it was open
	 * on would count as somebody who has the file open: nobody could be proven to be gone. */
	waiter->event_fd = dup3(gate->placeholder, event_fd, O_CLOEXEC);
	if (waiter->event_fd < 0)
		waiter->event_fd = event_fd;
	waiter->event = *event;
	waiter->shard = shard;
	waiter->report.device = file->device;
	waiter->report.inode = file->inode;
	list_init(&waiter->place);
	list_init(&waiter->place_fresh);
	list_init(&waiter->place_of_process);
	waiter->next_by_id = gate->by_id[waiter->id % BUCKETS];
	gate->by_id[waiter->id % BUCKETS] = waiter;
	gate->waiting[shard]++;
	gate->counters.waiters++;
	return waiter;
}

void gate_unlist_waiter(struct waiter *waiter)
{
	list_remove(&waiter->place);
	list_remove(&waiter->place_fresh);
	waiter->fresh = 0;
	if (waiter->file)
		waiter->file->waiter_count--;
	waiter->file = NULL;
	waiter->state = WAITER_NEW;
}

void gate_list_waiter(struct waiter *waiter, enum waiter_state state, struct list *list)
{
	gate_unlist_waiter(waiter);
	waiter->state = state;
	list_append(list, &waiter->place);
}

void gate_forget_waiter(struct seal_gate *gate, struct waiter *waiter)
{
	struct waiter **at = &gate->by_id[waiter->id % BUCKETS];

	while (*at != waiter)
		at = &(*at)->next_by_id;
	*at = waiter->next_by_id;
	gate_strike_off(gate, waiter);
	gate->waiting[waiter->shard]--;
	gate->counters.waiters--;
}

struct waiter *gate_find_waiter(struct seal_gate *gate, uint64_t id, enum waiter_state state)
{
	struct waiter *waiter = gate->by_id[id % BUCKETS];

	while (waiter && waiter->id != id)
		waiter = waiter->next_by_id;
	return waiter && waiter->state == state ? waiter : NULL;
}

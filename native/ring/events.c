/* The second ring: what the client is told without having asked. */
#include <errno.h>

#include "base/cleanup.h"
#include "internal.h"

void ring_push(struct ring *ring, const struct seal_ring_event *event)
{
	uint32_t tail = __atomic_load_n(&ring->mailbox->event_tail, __ATOMIC_ACQUIRE);
	uint32_t place = ring_place(ring->event_ring, ring->event_head);

	/* Also when the client's tail is nonsense: it then misses what it did not read. */
	if (!ring_is_position(ring->event_ring, tail, 1) ||
	    ring_ahead(ring->event_ring, tail, ring->event_head) >= ring->event_ring.size) {
		ring_flag(ring, SEAL_RING_MISSED);
		ring->counters->dropped++;
	} else {
		ring->event_head = ring_forward(ring->event_ring, ring->event_head, 1);
		ring->events[place] = *event;
		ring->events[place].sequence = ring->event_head;
		__atomic_store_n(&ring->mailbox->event_head, ring->event_head, __ATOMIC_RELEASE);
	}
	ring_bell(ring);
}

void ring_tell_seal(struct ring *ring, uint32_t kind, uint32_t number)
{
	const struct seal_slot *slot = &ring->slots[number];
	const struct seal_ring_event event = {
		.kind = kind,
		.slot = number,
		.file = slot->file,
		.word = slot->word,
		.cookie = slot->cookie,
		.offset = slot->offset,
		.length = slot->length,
		.deadline = slot->deadline,
		.id = slot->id,
	};

	ring_push(ring, &event);
}

int seal_ring_tell(struct seal_rings *rings, uint32_t number, const struct seal_ring_event *event)
{
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring) {
		struct seal_ring_event copy = *event;

		/* The service does not know the slot's generation. */
		if (copy.slot < ring->high)
			copy.word = ring->slots[copy.slot].word;
		ring_push(ring, &copy);
	}
	return ring ? 0 : -ENOENT;
}

/* The service's hand on single seals, and its view of all. */
#include <errno.h>

#include "base/cleanup.h"
#include "internal.h"

static void set_terms(struct seal_slot *slot, const struct seal_terms *terms)
{
	slot->offset = terms->offset;
	slot->length = terms->length;
	slot->expires = terms->expires;
	slot->deadline = terms->deadline;
	slot->iomode = (uint8_t)terms->iomode;
	slot->policy = (uint8_t)terms->policy;
	table_publish(slot, terms->state, terms->seqid);
}

int64_t seal_slot_take(struct seal_rings *rings, uint32_t number, const struct seal_terms *terms)
{
	struct ring *ring;
	int64_t slot = -ENOENT;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		slot = table_take(ring);
	if (slot >= 0) {
		ring->slots[slot].id = terms->id;
		ring->slots[slot].cookie = terms->cookie;
		ring->slots[slot].file = SEAL_NO_FILE;
		ring->slots[slot].adopted = ADOPTED;
		set_terms(&ring->slots[slot], terms);
	}
	return slot;
}

static struct seal_slot *find(struct seal_rings *rings, uint32_t number, uint32_t slot, uint64_t id,
			      struct ring **ring)
{
	struct seal_slot *there;

	*ring = ring_find(rings, number);
	if (!*ring || slot >= (*ring)->high)
		return NULL;
	there = &(*ring)->slots[slot];
	return there->id == id && there->adopted ? there : NULL;
}

int seal_slot_set(struct seal_rings *rings, uint32_t number, uint32_t slot,
		  const struct seal_terms *terms)
{
	struct seal_slot *there;
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	there = find(rings, number, slot, terms->id, &ring);
	if (there) {
		set_terms(there, terms);
		if (!seal_word_live(there->word)) {
			ring_tell_seal(ring, SEAL_EVENT_OVER, slot);
			table_release(ring, slot);
		}
	}
	return there ? 0 : -ENOENT;
}

int seal_slot_quiet(struct seal_rings *rings, uint32_t number, uint32_t slot, uint64_t id)
{
	struct seal_slot *there;
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	there = find(rings, number, slot, id, &ring);
	if (there) {
		there->adopted = 0;
		there->told = 1;
		if (there->expires && there->expires < ring->next_expiry)
			ring->next_expiry = there->expires;
	}
	return there ? 0 : -ENOENT;
}

int seal_slot_read(struct seal_rings *rings, uint32_t number, uint32_t slot, struct seal_slot *out)
{
	struct seal_slot *there = NULL;
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		there = table_live(ring, slot);
	if (there)
		*out = *there;
	return there ? 0 : -ENOENT;
}

void seal_rings_count(struct seal_rings *rings, struct seal_ring_counters *out)
{
	SCOPED_LOCK(rings->lock);
	*out = rings->counters;
}

size_t seal_rings_list(struct seal_rings *rings, struct seal_ring_row *out, size_t max)
{
	size_t count = 0;

	SCOPED_LOCK(rings->lock);
	for (int i = 0; i < SEAL_RINGS_MAX; i++) {
		const struct ring *ring = rings->ring[i];

		if (!ring)
			continue;
		if (count < max)
			out[count] = (struct seal_ring_row){
				.ring = ring->number,
				.owner = ring->shape.owner,
				.slots = ring->shape.slots,
				.used = ring->high - ring->free_count,
				.secret = ring->shape.secret,
				.grants = ring->grants,
				.returns = ring->returns,
				.recalls = ring->recalls,
				.commands = ring->commands_seen,
				.bytes = ring->memory_size +
					 ring->shape.slots * sizeof(struct seal_slot),
			};
		count++;
	}
	return count;
}

size_t seal_rings_files(struct seal_rings *rings, struct seal_file_row *out, size_t max)
{
	size_t count = 0;

	SCOPED_LOCK(rings->lock);
	for (int i = 0; i < SEAL_RINGS_MAX; i++)
		for (uint32_t f = 0; rings->ring[i] && f < SEAL_RING_FILES; f++) {
			const struct registration *file = &rings->ring[i]->files[f];

			if (!file->is.id)
				continue;
			if (count < max)
				out[count] = (struct seal_file_row){
					.ring = rings->ring[i]->number,
					.file = f,
					.live = file->live,
					.stale = (uint32_t)file->stale,
					.id = file->is.id,
				};
			count++;
		}
	return count;
}

/* Slots of a seal table. The client sees what is written here as it is written: the word comes last. */
#include <errno.h>
#include <string.h>

#include "internal.h"

struct seal_slot *table_live(struct ring *ring, uint32_t slot)
{
	return slot < ring->high && seal_word_live(ring->slots[slot].word) ? &ring->slots[slot]
									   : NULL;
}

int64_t table_take(struct ring *ring)
{
	struct seal_slot *slot;
	uint64_t word;
	uint32_t number;

	if (ring->free_count)
		number = ring->free[--ring->free_count];
	else if (ring->high < ring->shape.slots)
		number = ring->high++;
	else
		return -ENOSPC;
	slot = &ring->slots[number];
	word = slot->word;
	memset((char *)slot + sizeof(slot->word), 0, sizeof(*slot) - sizeof(slot->word));
	/* Whoever still has the word of the seal that was here before sees another. */
	__atomic_store_n(&slot->word, seal_word(SEAL_REQUESTED, seal_word_generation(word) + 1, 0),
			 __ATOMIC_RELEASE);
	return number;
}

void table_publish(struct seal_slot *slot, uint32_t state, uint32_t seqid)
{
	__atomic_store_n(&slot->word, seal_word(state, seal_word_generation(slot->word), seqid),
			 __ATOMIC_RELEASE);
}

int table_step(struct seal_slot *slot, enum seal_step step)
{
	uint32_t state = seal_word_state(slot->word), seqid = seal_word_seqid(slot->word);
	uint32_t next = state < SEAL_STATE_COUNT ? seal_transitions[state][step] : 0;

	if (!next)
		return -EINVAL;
	table_publish(slot, next - 1, seqid == UINT32_MAX ? 1 : seqid + 1);
	return 0;
}

void table_release(struct ring *ring, uint32_t slot)
{
	struct registration *file = ring_file(ring, ring->slots[slot].file);

	if (file)
		file->live--;
	ring->slots[slot].adopted = 0;
	ring->free[ring->free_count++] = slot;
}

struct seal_guard table_guard(const struct seal_slot *slot, const struct registration *file)
{
	uint64_t mask = file->is.block_size - 1;

	return (struct seal_guard){
		.id = slot->id,
		.start = slot->offset & ~mask,
		.end = (slot->offset + slot->length + mask) & ~mask,
		.holder = file->is.holder,
		.policy = slot->policy,
	};
}

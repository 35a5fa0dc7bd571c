/* Positions and entries of a ring in shared memory: the one description for our ring (seal_ring.h) and for
 * TCMU's (Documentation/target/tcmu-design.rst).
 *
 * A ring has `size` units, bytes or whole entries; the size need not be a power of two. Head and tail are
 * positions. They count modulo `wrap`, a multiple of the size, so the place in the ring is always the
 * position modulo the size. The ring is empty when head and tail are equal.
 *
 * - TCMU: wrap is the size. A position is a place, and who writes entries leaves a gap, because a full ring
 *   would look like an empty one.
 * - Ours: wrap is the largest multiple of the size up to 2^32, so that a full ring differs from an empty one.
 *   With a power of two that is 2^32: positions are plain counters of 32 bits.
 *
 * An entry is contiguous: where it does not fit before the end of the ring, a PAD entry fills what is left. */
#ifndef SEAL_RING_GEOMETRY_H
#define SEAL_RING_GEOMETRY_H

#include <stdint.h>

struct ring_geometry {
	uint32_t size;
	uint64_t wrap;
};

static inline struct ring_geometry ring_tcmu(uint32_t size)
{
	const struct ring_geometry ring = {size, size};

	return ring;
}

static inline struct ring_geometry ring_ours(uint32_t size)
{
	const struct ring_geometry ring = {size, (UINT64_C(1) << 32) / size * size};

	return ring;
}

static inline uint32_t ring_place(struct ring_geometry ring, uint32_t position)
{
	return position % ring.size;
}

/* `by` is at most the ring's size. */
static inline uint32_t ring_forward(struct ring_geometry ring, uint32_t position, uint32_t by)
{
	uint64_t sum = (uint64_t)position + by;

	return (uint32_t)(sum >= ring.wrap ? sum - ring.wrap : sum);
}

/* How far `to` is ahead of `from`. Both are positions. */
static inline uint32_t ring_ahead(struct ring_geometry ring, uint32_t from, uint32_t to)
{
	return (uint32_t)(to >= from ? to - from : ring.wrap - from + to);
}

/* Whether what the other side wrote is a position that entries of this alignment begin at. */
static inline int ring_is_position(struct ring_geometry ring, uint32_t position, uint32_t align)
{
	return position < ring.wrap && position % align == 0;
}

/* Whether an entry of `length` fits at `position`, before `head` and before the end of the ring. */
static inline int ring_holds(struct ring_geometry ring, uint32_t position, uint32_t head,
			     uint32_t length, uint32_t align)
{
	return length && length % align == 0 && length <= ring_ahead(ring, position, head) &&
	       length <= ring.size - ring_place(ring, position);
}

#endif

/* The seal table: one slot for each seal of a client, in memory that the service alone can write.
 *
 * A slot's word holds everything that decides whether a seal is still good, so that one load tells:
 * the state (bits 0-7), the generation of the slot (8-31), which goes up each time the slot is used
 * for another seal, and the seqid of the seal (32-63), which goes up with every change of state, as
 * in an NFSv4 stateid. It is written last, with release semantics: whoever has loaded it with acquire
 * semantics sees the other fields as they were then, or newer.
 */
#ifndef SEAL_TABLE_H
#define SEAL_TABLE_H

#include <stdint.h>

#include "seal_states.h"

#define SEAL_NO_FILE UINT32_MAX /* of a seal that was granted over the control socket */

/* Bytes, and nanoseconds of CLOCK_BOOTTIME (0: none). */
struct seal_slot {
	uint64_t word;
	uint64_t id; /* with the ring's number, what `sealctl` names the seal by */
	uint64_t offset, length;
	uint64_t expires;  /* the end of its ttl */
	uint64_t deadline; /* of its recall */
	uint64_t cookie;   /* the client's */
	uint32_t file;	   /* the registered file's index */
	uint8_t iomode;	   /* enum seal_iomode */
	uint8_t policy;	   /* the service's */
	uint8_t adopted;   /* the service's */
	uint8_t told;	   /* the service's: who keeps records knows of it */
};

enum seal_iomode {
	SEAL_READ = 1,
	SEAL_RW = 2,
};

static inline uint64_t seal_word(uint32_t state, uint32_t generation, uint32_t seqid)
{
	return (uint64_t)seqid << 32 | (uint64_t)(generation & 0xffffff) << 8 | (state & 0xff);
}

static inline uint32_t seal_word_state(uint64_t word)
{
	return (uint32_t)(word & 0xff);
}

static inline uint32_t seal_word_generation(uint64_t word)
{
	return (uint32_t)(word >> 8) & 0xffffff;
}

static inline uint32_t seal_word_seqid(uint64_t word)
{
	return (uint32_t)(word >> 32);
}

static inline int seal_word_live(uint64_t word)
{
	uint32_t state = seal_word_state(word);

	return state < 32 && (SEAL_LIVE_STATES >> state & 1u) != 0;
}

#ifdef __cplusplus
static_assert(sizeof(struct seal_slot) == 64, "a slot is one cache line");
#else
_Static_assert(sizeof(struct seal_slot) == 64, "a slot is one cache line");
#endif

#endif

/* Tags of at most 8 bytes as one word: made, and compared, at once. That is what T10 tuples are; on
 * sectors of 512 bytes the fields one by one would take as long as the CRC. */
#ifndef SEALSVC_INTEGRITY_TUPLE_H
#define SEALSVC_INTEGRITY_TUPLE_H

#include "field.h"

struct tuple {
	int usable; /* all fields are asked for, and big endian */
	unsigned bytes;
	uint64_t fixed; /* what is the same in each block */
	uint64_t reftag, step, reftag_mask;
	unsigned checksum_at, reftag_at; /* bits from the end of the word */
};

static inline unsigned tuple_shift(const struct tuple *tuple, const struct seal_pi_field *field)
{
	return tuple->bytes * 8 - field->offset - field->width;
}

/* The word of block `block`, as it stands in memory from its first byte on. */
static inline uint64_t tuple_word(const struct tuple *tuple, uint64_t checksum, uint64_t block)
{
	uint64_t word = tuple->fixed | checksum << tuple->checksum_at;

	word |= ((tuple->reftag + tuple->step * block) & tuple->reftag_mask) << tuple->reftag_at;
	return htobe64(word << (64 - tuple->bytes * 8));
}

static inline uint64_t tuple_read(const struct tuple *tuple, const uint8_t *tag)
{
	uint64_t word = 0;

	copy_bytes(&word, tag, tuple->bytes);
	return word;
}

#endif

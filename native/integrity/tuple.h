/* Tags of at most 16 bytes as one word or two: made, and compared, at once. That is what the tuples of T10 and
 * NVMe are; on sectors of 512 bytes the fields one by one would take as long as the CRC. */
#ifndef SEALSVC_INTEGRITY_TUPLE_H
#define SEALSVC_INTEGRITY_TUPLE_H

#include "field.h"
#include "pi.h"

#define TUPLE_WORDS 2
#define TUPLE_BATCH 32u /* blocks whose checksums are computed before their tuples are made */

/* One field: bits from the end of its word; in the other word it is masked out. */
struct tuple_field {
	unsigned at;
	uint64_t most;		      /* the largest value; without the field any fits */
	uint64_t inside[TUPLE_WORDS]; /* all ones, or 0 */
};

/* By the profile alone. Fields lie whole in one word. */
struct tuple {
	int usable;  /* all fields are asked for, and all but the checksum are big endian */
	int swapped; /* the checksum is little endian */
	unsigned bytes, checksum_width;
	struct tuple_field field[SEAL_PI_MAX_FIELDS]; /* by meaning */
};

/* Of one call: what is the same in each block, and the reference tag of the first. */
struct tuple_values {
	uint64_t fixed[TUPLE_WORDS], reftag, step;
};

/* The tuple of one block, as it stands in memory; `second` only of tuples of more than 8 bytes. */
struct tuple_words {
	uint64_t first, second;
};

static inline unsigned tuple_word_of(const struct seal_pi_field *field)
{
	return field->offset / 64;
}

static inline unsigned tuple_shift(const struct tuple *tuple, const struct seal_pi_field *field)
{
	unsigned start = tuple_word_of(field) * 64, bits = tuple->bytes * 8 - start;

	return (bits < 64 ? bits : 64) - (field->offset - start) - field->width;
}

static inline uint64_t tuple_place(const struct tuple_field *field, unsigned word, uint64_t value)
{
	return value << field->at & field->inside[word];
}

static inline struct tuple_values tuple_values(const struct tuple *tuple,
					       const struct seal_pi_request *request)
{
	const struct tuple_field *tag = &tuple->field[SEAL_PI_TAG];
	const struct tuple_field *storage = &tuple->field[SEAL_PI_STORAGE];
	const uint16_t kind = request->profile->reftag;

	return (struct tuple_values){
		.fixed = {tuple_place(tag, 0, request->tag) |
				  tuple_place(storage, 0, request->storage),
			  tuple_place(tag, 1, request->tag) |
				  tuple_place(storage, 1, request->storage)},
		.reftag = kind == SEAL_PI_BLOCKNUM ? request->block : request->reftag,
		.step = kind != SEAL_PI_CONSTANT,
	};
}

/* `bytes` is tuple->bytes, where it is known while this is compiled. */
static inline struct tuple_words tuple_of(const struct tuple *tuple,
					  const struct tuple_values *values, unsigned bytes,
					  uint64_t checksum, uint64_t block)
{
	const struct tuple_field *sum = &tuple->field[SEAL_PI_CHECKSUM];
	const struct tuple_field *ref = &tuple->field[SEAL_PI_REFTAG];
	const uint64_t reftag = (values->reftag + values->step * block) & ref->most;
	struct tuple_words made = {0, 0};

	if (tuple->swapped)
		checksum = __builtin_bswap64(checksum) >> (64 - tuple->checksum_width);
	made.first = values->fixed[0] | tuple_place(sum, 0, checksum) | tuple_place(ref, 0, reftag);
	if (bytes <= 8) {
		made.first = htobe64(made.first << (64 - bytes * 8));
		return made;
	}
	made.second =
		values->fixed[1] | tuple_place(sum, 1, checksum) | tuple_place(ref, 1, reftag);
	made.first = htobe64(made.first);
	made.second = htobe64(made.second << (128 - bytes * 8));
	return made;
}

static inline void tuple_store(const struct tuple_words *words, unsigned bytes, uint8_t *tag)
{
	copy_bytes(tag, &words->first, bytes < 8 ? bytes : 8);
	if (bytes > 8)
		copy_bytes(tag + 8, &words->second, bytes - 8);
}

static inline int tuple_equals(const struct tuple_words *words, unsigned bytes, const uint8_t *tag)
{
	struct tuple_words there = {0, 0};

	copy_bytes(&there.first, tag, bytes < 8 ? bytes : 8);
	if (bytes > 8)
		copy_bytes(&there.second, tag + 8, bytes - 8);
	return there.first == words->first && there.second == words->second;
}

#endif

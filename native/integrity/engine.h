/* One call of the engine: its arguments made ready (engine.c), and the steps that generate.c and verify.c take
 * for each block. */
#ifndef SEALSVC_INTEGRITY_ENGINE_H
#define SEALSVC_INTEGRITY_ENGINE_H

#include "field.h"
#include "pi.h"
#include "sum.h"
#include "tuple.h"
#include "walk.h"

/* One call, once its arguments are found to fit. */
struct engine {
	const struct seal_pi_request *request;
	const struct seal_pi_profile *profile;
	const struct seal_pi_field *field[SEAL_PI_MAX_FIELDS]; /* by meaning; NULL: not asked for */
	const struct seal_pi_field *all[SEAL_PI_MAX_FIELDS];   /* by meaning; NULL: not there */
	uint64_t value[SEAL_PI_MAX_FIELDS], step[SEAL_PI_MAX_FIELDS]; /* by meaning */
	uint64_t blocks;
	size_t block_bytes;
	int block_shift; /* block_bytes is 1 << this; -1: it is no power of two */
	struct walk walk;
	struct seal_sum sum;
	struct tuple tuple;
	int is_number;
};

static inline uint64_t ones(const struct seal_pi_field *field)
{
	return field->width == 64 ? ~0ull : (1ull << field->width) - 1;
}

/* The thread's own engine, ready for this call; it is the caller's until engine_finish. 0 or -errno. */
int engine_prepare(struct engine **out, const struct seal_pi_request *request,
		   const struct iovec *data, int count, size_t tags_length, int verifying);
void engine_finish(struct engine *engine);
/* The short way of a call of the same kind as the thread's last, on data in one piece and tags of one or two
 * words: its layout and how many blocks there are. NULL: engine_prepare has to look, or the call is wrong. */
const struct engine *engine_plain(const struct seal_pi_request *request, const struct iovec *data,
				  int count, size_t tags_length, uint64_t *blocks);

static inline uint64_t value_of(const struct engine *engine, unsigned meaning, uint64_t block)
{
	return (engine->value[meaning] + engine->step[meaning] * block) &
	       ones(engine->field[meaning]);
}

static inline int add_pieces(struct engine *engine)
{
	struct walk *walk = &engine->walk;
	size_t left = engine->block_bytes;
	int result = seal_sum_begin(&engine->sum);

	while (!result && left) {
		const struct iovec *piece;
		size_t part;

		skip_empty(walk);
		piece = &walk->data[walk->at];
		part = piece->iov_len - walk->offset < left ? piece->iov_len - walk->offset : left;
		result = seal_sum_add(&engine->sum, (const char *)piece->iov_base + walk->offset,
				      part);
		walk->offset += part;
		left -= part;
	}
	return result;
}

/* The checksum of the next block, where it is a number. */
static inline int next_number(struct engine *engine, uint64_t *out)
{
	const void *data = in_one_piece(&engine->walk, engine->block_bytes);
	int result = 0;

	if (data)
		*out = seal_sum_whole(&engine->sum, data, engine->block_bytes);
	else if (!(result = add_pieces(engine)))
		*out = seal_sum_number(&engine->sum);
	return result;
}

/* Whole blocks in so many bytes; a division takes as long as the CRC of a sector. */
static inline uint64_t blocks_in(const struct engine *engine, uint64_t bytes)
{
	return engine->block_shift >= 0 ? bytes >> engine->block_shift
					: bytes / engine->block_bytes;
}

/* The next blocks that lie whole in one piece, `count` of them; the walk stays before them. */
static inline const uint8_t *run_of(struct engine *engine, uint64_t *count)
{
	struct walk *walk = &engine->walk;

	*count = 0;
	skip_empty(walk);
	if (!engine->tuple.usable || !engine->block_bytes || walk->at == walk->count)
		return NULL;
	*count = blocks_in(engine, walk->data[walk->at].iov_len - walk->offset);
	return (const uint8_t *)walk->data[walk->at].iov_base + walk->offset;
}

static inline void skip_block(struct engine *engine)
{
	size_t left = engine->block_bytes;

	while (left) {
		size_t part;

		skip_empty(&engine->walk);
		part = engine->walk.data[engine->walk.at].iov_len - engine->walk.offset;
		part = part < left ? part : left;
		engine->walk.offset += part;
		left -= part;
	}
}

#endif

/* Tags are computed and stored. */
#include "engine.h"

#include <string.h>

static int put_checksum(struct engine *engine, uint8_t *tag)
{
	const struct seal_pi_field *field = engine->field[SEAL_PI_CHECKSUM];
	uint8_t whole[SEAL_PI_MAX_VALUE];
	uint64_t number = 0;
	int result;

	if (engine->is_number) {
		result = next_number(engine, &number);
		if (!result)
			put_field(tag, field, number);
		return result;
	}
	if (!(result = add_pieces(engine)) && !(result = seal_sum_bytes(&engine->sum, whole)))
		memcpy(tag + field->offset / 8, whole, field->width / 8);
	return result;
}

static int put_block(struct engine *engine, uint8_t *tag, uint64_t block)
{
	for (unsigned i = 0; i < SEAL_PI_MAX_FIELDS; i++)
		if (engine->field[i] && i != SEAL_PI_CHECKSUM)
			put_field(tag, engine->field[i], value_of(engine, i, block));
	return engine->field[SEAL_PI_CHECKSUM] ? put_checksum(engine, tag) : 0;
}

/* `bytes` is known while this is compiled, or engine->tuple.bytes. */
static inline void put_tuples(const struct engine *engine, const struct tuple_values *values,
			      unsigned bytes, const uint8_t *data, uint8_t *tag, uint64_t block,
			      uint64_t count)
{
	size_t size = engine->block_bytes;
	uint64_t sums[TUPLE_BATCH];

	for (uint64_t first = 0; first < count; first += TUPLE_BATCH) {
		uint64_t some = count - first < TUPLE_BATCH ? count - first : TUPLE_BATCH;

		seal_sum_blocks(&engine->sum, data + first * size, size, some, sums);
		for (uint64_t i = 0; i < some; i++, tag += bytes) {
			struct tuple_words words =
				tuple_of(&engine->tuple, values, bytes, sums[i], block + first + i);

			tuple_store(&words, bytes, tag);
		}
	}
}

static void put_run(const struct engine *engine, const struct seal_pi_request *request,
		    const uint8_t *data, uint8_t *tag, uint64_t block, uint64_t count)
{
	const struct tuple_values values = tuple_values(&engine->tuple, request);

	switch (engine->tuple.bytes) {
	case 8:
		put_tuples(engine, &values, 8, data, tag, block, count);
		break;
	case 16:
		put_tuples(engine, &values, 16, data, tag, block, count);
		break;
	default:
		put_tuples(engine, &values, engine->tuple.bytes, data, tag, block, count);
	}
}

static int64_t put_all(const struct seal_pi_request *request, const struct iovec *data, int count,
		       void *tags, size_t length)
{
	struct engine *engine;
	int result = engine_prepare(&engine, request, data, count, length, 0);
	uint64_t block = 0, run;

	while (!result && block < engine->blocks) {
		uint8_t *tag = (uint8_t *)tags + block * engine->profile->width;
		const uint8_t *piece = run_of(engine, &run);

		if (run) {
			put_run(engine, request, piece, tag, block, run);
			engine->walk.offset += run * engine->block_bytes;
			block += run;
		} else {
			result = put_block(engine, tag, block++);
		}
	}
	engine_finish(engine);
	return result ? result : (int64_t)engine->blocks;
}

int64_t seal_pi_generate(const struct seal_pi_request *request, const struct iovec *data, int count,
			 void *tags, size_t length)
{
	uint64_t blocks;
	const struct engine *plain = engine_plain(request, data, count, length, &blocks);

	if (!plain)
		return put_all(request, data, count, tags, length);
	put_run(plain, request, data->iov_base, tags, 0, blocks);
	return (int64_t)blocks;
}

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

static void put_run(struct engine *engine, const uint8_t *data, uint8_t *tag, uint64_t block,
		    uint64_t count)
{
	const struct tuple tuple = engine->tuple; /* no store to a tag changes it */
	size_t size = engine->block_bytes;

	for (uint64_t i = 0; i < count; i++, tag += tuple.bytes) {
		uint64_t checksum = seal_sum_whole(&engine->sum, data + i * size, size);
		uint64_t word = tuple_word(&tuple, checksum, block + i);

		copy_bytes(tag, &word, tuple.bytes);
	}
	engine->walk.offset += count * size;
}

int64_t seal_pi_generate(const struct seal_pi_request *request, const struct iovec *data, int count,
			 void *tags, size_t length)
{
	struct engine *engine;
	int result = engine_prepare(&engine, request, data, count, length, 0);
	uint64_t block = 0, run;

	while (!result && block < engine->blocks) {
		uint8_t *tag = (uint8_t *)tags + block * engine->profile->width;
		const uint8_t *piece = run_of(engine, &run);

		if (run) {
			put_run(engine, piece, tag, block, run);
			block += run;
		} else {
			result = put_block(engine, tag, block++);
		}
	}
	engine_finish(engine);
	return result ? result : (int64_t)engine->blocks;
}

/* Tags are computed and compared. */
#include "engine.h"

#include <string.h>

struct findings {
	struct seal_pi_error *errors;
	size_t room;
	int64_t count;
};

static struct seal_pi_error *new_error(struct findings *findings, uint64_t block, unsigned meaning)
{
	static __thread struct seal_pi_error overflow; /* counted, but not kept */
	size_t at = (size_t)findings->count++;
	struct seal_pi_error *error = at < findings->room ? &findings->errors[at] : &overflow;

	*error = (struct seal_pi_error){.block = block, .meaning = meaning};
	return error;
}

static uint32_t spell(uint8_t *out, const struct seal_pi_field *field, uint64_t value)
{
	unsigned bytes = (field->width + 7u) / 8;

	for (unsigned i = bytes; i--; value >>= 8)
		out[i] = (uint8_t)value;
	return bytes;
}

static void differ(struct findings *findings, uint64_t block, const struct seal_pi_field *field,
		   uint64_t expected, uint64_t found)
{
	struct seal_pi_error *error;

	if (expected == found)
		return;
	error = new_error(findings, block, field->meaning);
	error->expected_length = spell(error->expected, field, expected);
	error->found_length = spell(error->found, field, found);
}

static int all_ones(const struct engine *engine, const uint8_t *tag, unsigned meaning)
{
	const struct seal_pi_field *field = engine->all[meaning];

	return !field || get_field(tag, field) == ones(field);
}

static int escapes(const struct engine *engine, const uint8_t *tag)
{
	switch (engine->profile->escape) {
	case SEAL_PI_ESCAPE_TAG:
		return all_ones(engine, tag, SEAL_PI_TAG);
	case SEAL_PI_ESCAPE_TAG_REFTAG:
		return all_ones(engine, tag, SEAL_PI_TAG) && all_ones(engine, tag, SEAL_PI_REFTAG);
	default:
		return 0;
	}
}

static int check_bytes(struct engine *engine, const uint8_t *tag, uint64_t block,
		       struct findings *findings)
{
	const struct seal_pi_field *field = engine->field[SEAL_PI_CHECKSUM];
	const uint8_t *found = tag + field->offset / 8;
	uint32_t bytes = field->width / 8u;
	uint8_t whole[SEAL_PI_MAX_VALUE];
	struct seal_pi_error *error;
	int result = add_pieces(engine), is_signature = engine->sum.key != NULL;

	if (result)
		return result;
	result = is_signature ? seal_sum_signed(&engine->sum, found)
			      : seal_sum_bytes(&engine->sum, whole);
	if (result < 0)
		return result;
	if (is_signature ? result : !memcmp(whole, found, bytes))
		return 0;
	error = new_error(findings, block, SEAL_PI_CHECKSUM);
	error->found_length = bytes;
	memcpy(error->found, found, bytes);
	if (!is_signature) {
		error->expected_length = bytes;
		memcpy(error->expected, whole, bytes);
	}
	return 0;
}

static int check_checksum(struct engine *engine, const uint8_t *tag, uint64_t block,
			  struct findings *findings)
{
	const struct seal_pi_field *field = engine->field[SEAL_PI_CHECKSUM];
	uint64_t expected = 0;
	int result;

	if (!engine->is_number)
		return check_bytes(engine, tag, block, findings);
	result = next_number(engine, &expected);
	if (!result)
		differ(findings, block, field, expected, get_field(tag, field));
	return result;
}

static int check_block(struct engine *engine, const uint8_t *tag, uint64_t block,
		       struct findings *findings)
{
	if (escapes(engine, tag)) {
		skip_block(engine);
		return 0;
	}
	for (unsigned i = 0; i < SEAL_PI_MAX_FIELDS; i++)
		if (engine->field[i] && i != SEAL_PI_CHECKSUM)
			differ(findings, block, engine->field[i], value_of(engine, i, block),
			       get_field(tag, engine->field[i]));
	return engine->field[SEAL_PI_CHECKSUM] ? check_checksum(engine, tag, block, findings) : 0;
}

/* `bytes` is known while this is compiled, or engine->tuple.bytes. */
static inline uint64_t good_tuples(const struct engine *engine, const struct tuple_values *values,
				   unsigned bytes, const uint8_t *data, const uint8_t *tag,
				   uint64_t block, uint64_t count)
{
	size_t size = engine->block_bytes;
	uint64_t sums[TUPLE_BATCH];

	for (uint64_t first = 0; first < count; first += TUPLE_BATCH) {
		uint64_t some = count - first < TUPLE_BATCH ? count - first : TUPLE_BATCH;

		seal_sum_blocks(&engine->sum, data + first * size, size, some, sums);
		for (uint64_t i = 0; i < some; i++, tag += bytes) {
			struct tuple_words words =
				tuple_of(&engine->tuple, values, bytes, sums[i], block + first + i);

			if (!tuple_equals(&words, bytes, tag))
				return first + i;
		}
	}
	return count;
}

/* How many blocks, of `count`, are as they should be up to the first that is not. */
static uint64_t good_run(const struct engine *engine, const struct seal_pi_request *request,
			 const uint8_t *data, const uint8_t *tag, uint64_t block, uint64_t count)
{
	const struct tuple_values values = tuple_values(&engine->tuple, request);

	switch (engine->tuple.bytes) {
	case 8:
		return good_tuples(engine, &values, 8, data, tag, block, count);
	case 16:
		return good_tuples(engine, &values, 16, data, tag, block, count);
	default:
		return good_tuples(engine, &values, engine->tuple.bytes, data, tag, block, count);
	}
}

static int64_t check_all(const struct seal_pi_request *request, const struct iovec *data, int count,
			 const void *tags, size_t length, struct seal_pi_error *errors, size_t room)
{
	struct findings findings = {errors, room, 0};
	struct engine *engine;
	int result = engine_prepare(&engine, request, data, count, length, 1);
	uint64_t block = 0, run;

	while (!result && block < engine->blocks) {
		const uint8_t *tag = (const uint8_t *)tags + block * engine->profile->width;
		const uint8_t *piece = run_of(engine, &run);

		run = run ? good_run(engine, request, piece, tag, block, run) : 0;
		engine->walk.offset += run * engine->block_bytes;
		if (run) {
			block += run;
		} else {
			result = check_block(engine, tag, block, &findings);
			block++;
		}
	}
	engine_finish(engine);
	return result ? result : findings.count;
}

int64_t seal_pi_verify(const struct seal_pi_request *request, const struct iovec *data, int count,
		       const void *tags, size_t length, struct seal_pi_error *errors, size_t room)
{
	uint64_t blocks;
	const struct engine *plain = engine_plain(request, data, count, length, &blocks);

	if (plain && good_run(plain, request, data->iov_base, tags, 0, blocks) == blocks)
		return 0;
	return check_all(request, data, count, tags, length, errors, room);
}

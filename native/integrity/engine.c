#include "field.h"
#include "pi.h"
#include "sum.h"
#include "tuple.h"

#include <errno.h>
#include <string.h>

/* A walk through scattered data, block by block. */
struct walk {
	const struct iovec *data;
	int count, at;
	size_t offset; /* in data[at] */
};

/* One call, once its arguments are found to fit. */
struct engine {
	const struct seal_pi_request *request;
	const struct seal_pi_profile *profile;
	const struct seal_pi_field *field[SEAL_PI_MAX_FIELDS]; /* by meaning; NULL: not asked for */
	const struct seal_pi_field *all[SEAL_PI_MAX_FIELDS];   /* by meaning; NULL: not there */
	uint64_t value[SEAL_PI_MAX_FIELDS], step[SEAL_PI_MAX_FIELDS]; /* by meaning */
	uint64_t blocks;
	size_t block_bytes;
	struct walk walk;
	struct seal_sum sum;
	struct tuple tuple;
	int is_number;
};

static inline uint64_t ones(const struct seal_pi_field *field)
{
	return field->width == 64 ? ~0ull : (1ull << field->width) - 1;
}

/* -- data ------------------------------------------------------------------------------------ */

static void skip_empty(struct walk *walk)
{
	while (walk->at < walk->count && walk->offset == walk->data[walk->at].iov_len) {
		walk->at++;
		walk->offset = 0;
	}
}

/* `wanted` bytes in one piece, or NULL when they lie in several. */
static const void *in_one_piece(struct walk *walk, size_t wanted)
{
	const struct iovec *piece;
	const char *found;

	skip_empty(walk);
	if (walk->at == walk->count)
		return "";
	piece = &walk->data[walk->at];
	if (piece->iov_len - walk->offset < wanted)
		return NULL;
	found = (const char *)piece->iov_base + walk->offset;
	walk->offset += wanted;
	return found;
}

static int add_pieces(struct engine *engine)
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
static int next_number(struct engine *engine, uint64_t *out)
{
	const void *data = in_one_piece(&engine->walk, engine->block_bytes);
	int result = 0;

	if (data)
		*out = seal_sum_whole(&engine->sum, data, engine->block_bytes);
	else if (!(result = add_pieces(engine)))
		*out = seal_sum_number(&engine->sum);
	return result;
}

/* The next blocks that lie whole in one piece, `count` of them; the walk stays before them. */
static const uint8_t *run_of(struct engine *engine, uint64_t *count)
{
	struct walk *walk = &engine->walk;

	*count = 0;
	skip_empty(walk);
	if (!engine->tuple.usable || !engine->block_bytes || walk->at == walk->count)
		return NULL;
	*count = (walk->data[walk->at].iov_len - walk->offset) / engine->block_bytes;
	return (const uint8_t *)walk->data[walk->at].iov_base + walk->offset;
}

static void skip_block(struct engine *engine)
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

/* -- arguments ------------------------------------------------------------------------------- */

static int lay_out(struct engine *engine)
{
	const struct seal_pi_profile *profile = engine->profile;

	for (unsigned i = 0; i < profile->fields; i++) {
		const struct seal_pi_field *field = &profile->field[i];

		engine->all[field->meaning] = field;
		if (engine->request->fields & 1u << field->meaning)
			engine->field[field->meaning] = field;
	}
	for (unsigned i = 0; i < SEAL_PI_MAX_FIELDS; i++)
		if (engine->request->fields & 1u << i && !engine->all[i])
			return -EINVAL;
	return engine->request->fields >> SEAL_PI_MAX_FIELDS ? -EINVAL : 0;
}

static int fits(const struct seal_pi_field *field, uint64_t value)
{
	return !field || value <= ones(field);
}

static int measure(struct engine *engine, size_t tags_length)
{
	const struct walk *walk = &engine->walk;
	uint64_t bytes = 0, granularity = engine->profile->granularity;

	if (walk->count < 0)
		return -EINVAL;
	for (int i = 0; i < walk->count; i++)
		if (__builtin_add_overflow(bytes, walk->data[i].iov_len, &bytes))
			return -EINVAL;
	if (granularity && bytes % granularity)
		return -EINVAL;
	engine->blocks = granularity ? bytes / granularity : 1;
	engine->block_bytes = granularity ? granularity : bytes;
	return engine->blocks > tags_length / engine->profile->width ? -ENOSPC : 0;
}

/* What the fields but the checksum have: a value for the first block, and what each next adds. */
static void take_values(struct engine *engine)
{
	const struct seal_pi_request *request = engine->request;

	engine->value[SEAL_PI_TAG] = request->tag;
	engine->value[SEAL_PI_STORAGE] = request->storage;
	engine->value[SEAL_PI_REFTAG] =
		engine->profile->reftag == SEAL_PI_BLOCKNUM ? request->block : request->reftag;
	engine->step[SEAL_PI_REFTAG] = engine->profile->reftag != SEAL_PI_CONSTANT;
}

static inline uint64_t value_of(const struct engine *engine, unsigned meaning, uint64_t block)
{
	return (engine->value[meaning] + engine->step[meaning] * block) &
	       ones(engine->field[meaning]);
}

/* Where the fields are, if the whole tag fits into a word. */
static void take_tuple(struct engine *engine)
{
	struct tuple *tuple = &engine->tuple;
	unsigned bits = 0;

	tuple->bytes = engine->profile->width;
	if (tuple->bytes > 8 || !engine->is_number || !engine->field[SEAL_PI_CHECKSUM])
		return;
	for (unsigned i = 0; i < SEAL_PI_MAX_FIELDS; i++) {
		const struct seal_pi_field *field = engine->field[i];

		if (engine->all[i] != field || (field && field->order != SEAL_PI_BIG_ENDIAN))
			return;
		if (!field)
			continue;
		bits += field->width;
		if (i == SEAL_PI_CHECKSUM)
			tuple->checksum_at = tuple_shift(tuple, field);
		else if (i == SEAL_PI_REFTAG) {
			tuple->reftag_at = tuple_shift(tuple, field);
			tuple->reftag_mask = ones(field);
		}
	}
	tuple->usable = bits == tuple->bytes * 8;
}

/* What the fields but the checksum have, in this call. */
static void fill_tuple(struct engine *engine)
{
	struct tuple *tuple = &engine->tuple;

	tuple->fixed = 0;
	tuple->reftag = engine->value[SEAL_PI_REFTAG];
	tuple->step = engine->step[SEAL_PI_REFTAG];
	for (unsigned i = 0; i < SEAL_PI_MAX_FIELDS; i++)
		if (engine->field[i] && i != SEAL_PI_CHECKSUM && i != SEAL_PI_REFTAG)
			tuple->fixed |= engine->value[i] << tuple_shift(tuple, engine->field[i]);
}

/* What of a call depends on its profile and its fields alone, by the thread's last call: whoever
 * tags sectors one by one does not have the profile checked and laid out each time. */
struct laid_out {
	struct seal_pi_profile profile; /* a copy, which `engine` points into */
	uint32_t fields;
	struct engine engine;
};

static int lay_out_anew(struct laid_out *last, const struct seal_pi_request *request)
{
	struct engine *engine = &last->engine;
	int result;

	last->fields = 0; /* until it is known to be good */
	if ((result = seal_pi_check(request->profile, NULL)))
		return result;
	last->profile = *request->profile;
	*engine = (struct engine){.request = request, .profile = &last->profile};
	if ((result = lay_out(engine)))
		return result;
	engine->is_number = seal_sum_is_number(last->profile.checksum);
	take_tuple(engine);
	if (engine->is_number && engine->field[SEAL_PI_CHECKSUM] &&
	    (result = seal_sum_open(&engine->sum, last->profile.checksum, NULL, 0, 0)))
		return result;
	last->fields = request->fields;
	return 0;
}

/* The thread's own engine, ready for this call; it is the caller's until `finish`. */
static int prepare(struct engine **out, const struct seal_pi_request *request,
		   const struct iovec *data, int count, size_t tags_length, int verifying)
{
	static __thread struct laid_out last;
	struct engine *engine = &last.engine;
	int result;

	*out = engine;
	if ((!last.fields || last.fields != request->fields ||
	     memcmp(&last.profile, request->profile, sizeof(last.profile))) &&
	    (result = lay_out_anew(&last, request)))
		return result;
	engine->request = request;
	engine->walk = (struct walk){.data = data, .count = count};
	if ((result = measure(engine, tags_length)))
		return result;
	if (!fits(engine->field[SEAL_PI_TAG], request->tag) ||
	    !fits(engine->field[SEAL_PI_STORAGE], request->storage))
		return -EINVAL;
	take_values(engine);
	if (engine->tuple.usable)
		fill_tuple(engine);
	if (engine->is_number || !engine->field[SEAL_PI_CHECKSUM])
		return 0;
	return seal_sum_open(&engine->sum, engine->profile->checksum, request->key,
			     request->key_length, verifying);
}

static void finish(struct engine *engine)
{
	if (!engine->is_number)
		seal_sum_close(&engine->sum);
}

/* -- generate -------------------------------------------------------------------------------- */

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
	int result = prepare(&engine, request, data, count, length, 0);
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
	finish(engine);
	return result ? result : (int64_t)engine->blocks;
}

/* -- verify ---------------------------------------------------------------------------------- */

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

/* How many blocks, of `count`, are as they should be up to the first that is not. */
static uint64_t good_run(struct engine *engine, const uint8_t *data, const uint8_t *tag,
			 uint64_t block, uint64_t count)
{
	const struct tuple tuple = engine->tuple;
	size_t size = engine->block_bytes;
	uint64_t i;

	for (i = 0; i < count; i++, tag += tuple.bytes) {
		uint64_t checksum = seal_sum_whole(&engine->sum, data + i * size, size);

		if (tuple_word(&tuple, checksum, block + i) != tuple_read(&tuple, tag))
			break;
	}
	engine->walk.offset += i * size;
	return i;
}

int64_t seal_pi_verify(const struct seal_pi_request *request, const struct iovec *data, int count,
		       const void *tags, size_t length, struct seal_pi_error *errors, size_t room)
{
	struct findings findings = {errors, room, 0};
	struct engine *engine;
	int result = prepare(&engine, request, data, count, length, 1);
	uint64_t block = 0, run;

	while (!result && block < engine->blocks) {
		const uint8_t *tag = (const uint8_t *)tags + block * engine->profile->width;
		const uint8_t *piece = run_of(engine, &run);

		run = run ? good_run(engine, piece, tag, block, run) : 0;
		if (run)
			block += run;
		else {
			result = check_block(engine, tag, block, &findings);
			block++;
		}
	}
	finish(engine);
	return result ? result : findings.count;
}

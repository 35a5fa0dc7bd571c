/* The arguments of a call: checked, and laid out once for calls of one kind. */
#include "engine.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

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
	uint64_t bytes = 0, tags;

	if (walk->count < 0)
		return -EINVAL;
	for (int i = 0; i < walk->count; i++)
		if (__builtin_add_overflow(bytes, walk->data[i].iov_len, &bytes))
			return -EINVAL;
	if (engine->profile->granularity) {
		engine->blocks = blocks_in(engine, bytes);
		if (engine->blocks * engine->block_bytes != bytes)
			return -EINVAL;
	} else {
		engine->blocks = 1;
		engine->block_bytes = bytes;
	}
	if (__builtin_mul_overflow(engine->blocks, engine->profile->width, &tags))
		return -ENOSPC;
	return tags > tags_length ? -ENOSPC : 0;
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

static void take_field(struct tuple *tuple, const struct seal_pi_field *field)
{
	struct tuple_field *taken = &tuple->field[field->meaning];

	taken->at = tuple_shift(tuple, field);
	taken->most = ones(field);
	taken->inside[tuple_word_of(field)] = ~0ull;
	if (field->meaning != SEAL_PI_CHECKSUM)
		return;
	tuple->checksum_width = field->width;
	tuple->swapped = field->order != SEAL_PI_BIG_ENDIAN;
}

/* Where the fields are, if the whole tag fits into two words. */
static void take_tuple(struct engine *engine)
{
	struct tuple *tuple = &engine->tuple;
	unsigned bits = 0;

	tuple->bytes = engine->profile->width;
	if (tuple->bytes > TUPLE_WORDS * 8 || !engine->is_number ||
	    !engine->field[SEAL_PI_CHECKSUM])
		return;
	for (unsigned i = 0; i < SEAL_PI_MAX_FIELDS; i++) {
		const struct seal_pi_field *field = engine->field[i];

		tuple->field[i].most = ~0ull;
		if (engine->all[i] != field)
			return;
		if (!field)
			continue;
		if ((field->order != SEAL_PI_BIG_ENDIAN && i != SEAL_PI_CHECKSUM) ||
		    (field->offset + field->width - 1u) / 64 != tuple_word_of(field))
			return;
		bits += field->width;
		take_field(tuple, field);
	}
	tuple->usable = bits == tuple->bytes * 8;
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
	engine->block_bytes = last->profile.granularity;
	engine->block_shift =
		engine->block_bytes && !(engine->block_bytes & (engine->block_bytes - 1))
			? __builtin_ctzl(engine->block_bytes)
			: -1;
	take_tuple(engine);
	if (engine->is_number && engine->field[SEAL_PI_CHECKSUM] &&
	    (result = seal_sum_open(&engine->sum, last->profile.checksum, NULL, 0, 0)))
		return result;
	last->fields = request->fields;
	return 0;
}

/* All but the name, which says nothing of the layout. memcmp(3) is a call. */
static inline int is_same(const struct seal_pi_profile *one, const struct seal_pi_profile *other)
{
	enum { START = offsetof(struct seal_pi_profile, granularity), END = sizeof(*one) };
	const char *a = (const char *)one, *b = (const char *)other;
	uint64_t differs = 0, x, y;
	uint32_t last, others;

	_Static_assert((END - START) % sizeof(x) == sizeof(last), "words, and half a one");
#pragma GCC unroll 8
	for (size_t at = START; at + sizeof(x) <= END; at += sizeof(x)) {
		memcpy(&x, a + at, sizeof(x));
		memcpy(&y, b + at, sizeof(y));
		differs |= x ^ y;
	}
	memcpy(&last, a + END - sizeof(last), sizeof(last));
	memcpy(&others, b + END - sizeof(last), sizeof(last));
	return !(differs | (last ^ others));
}

static __thread struct laid_out last;

static inline int is_last(const struct seal_pi_request *request)
{
	return last.fields && last.fields == request->fields &&
	       is_same(&last.profile, request->profile);
}

const struct engine *engine_plain(const struct seal_pi_request *request, const struct iovec *data,
				  int count, size_t tags_length, uint64_t *blocks)
{
	const struct engine *engine = &last.engine;
	const struct tuple *tuple = &engine->tuple;

	if (count != 1 || !is_last(request) || !tuple->usable || !engine->profile->granularity)
		return NULL;
	*blocks = blocks_in(engine, data->iov_len);
	if (*blocks * engine->block_bytes != data->iov_len ||
	    *blocks > SIZE_MAX / (TUPLE_WORDS * 8) || *blocks * tuple->bytes > tags_length ||
	    request->tag > tuple->field[SEAL_PI_TAG].most ||
	    request->storage > tuple->field[SEAL_PI_STORAGE].most)
		return NULL;
	return engine;
}

int engine_prepare(struct engine **out, const struct seal_pi_request *request,
		   const struct iovec *data, int count, size_t tags_length, int verifying)
{
	struct engine *engine = &last.engine;
	int result;

	*out = engine;
	if (!is_last(request) && (result = lay_out_anew(&last, request)))
		return result;
	engine->request = request;
	engine->walk = (struct walk){.data = data, .count = count};
	if ((result = measure(engine, tags_length)))
		return result;
	if (!fits(engine->field[SEAL_PI_TAG], request->tag) ||
	    !fits(engine->field[SEAL_PI_STORAGE], request->storage))
		return -EINVAL;
	take_values(engine);
	if (engine->is_number || !engine->field[SEAL_PI_CHECKSUM])
		return 0;
	return seal_sum_open(&engine->sum, engine->profile->checksum, request->key,
			     request->key_length, verifying);
}

void engine_finish(struct engine *engine)
{
	if (!engine->is_number)
		seal_sum_close(&engine->sum);
}

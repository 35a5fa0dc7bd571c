/* The arguments of a call: checked, and laid out once for calls of one kind. */
#include "engine.h"

#include <errno.h>
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

int engine_prepare(struct engine **out, const struct seal_pi_request *request,
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

void engine_finish(struct engine *engine)
{
	if (!engine->is_number)
		seal_sum_close(&engine->sum);
}

#include "check.h"

#include <errno.h>
#include <string.h>

/* Blocks in one call of the engine where metadata before the tuple is part of the guarded data. */
#define BATCH 64

_Static_assert(SEAL_FIELD_TAG == 1 << SEAL_PI_TAG, "fields are the engine's");
_Static_assert(SEAL_FIELD_CHECKSUM == 1 << SEAL_PI_CHECKSUM, "fields are the engine's");
_Static_assert(SEAL_FIELD_REFTAG == 1 << SEAL_PI_REFTAG, "fields are the engine's");

static int checksum_of(uint32_t guard)
{
	switch (guard) {
	case SEAL_PI_GUARD_IP:
		return SEAL_PI_IP_CHECKSUM;
	case SEAL_PI_GUARD_CRC16:
		return SEAL_PI_CRC16_T10DIF;
	case SEAL_PI_GUARD_CRC64:
		return SEAL_PI_CRC64_NVME;
	default:
		return SEAL_PI_NO_CHECKSUM;
	}
}

static int is_power_of_two(uint32_t n)
{
	return n && !(n & (n - 1));
}

/* struct t10_pi_tuple and struct crc64_pi_tuple of include/linux/t10-pi.h, 6.18. Linux makes no tuples
 * with a storage tag. The bits of a type 3 reference tag are kept, and mean nothing. */
int pi_check_profile(const struct seal_pi_capability *layout, struct seal_pi_profile *out)
{
	uint16_t checksum = (uint16_t)checksum_of(layout->guard);
	uint16_t guard = checksum == SEAL_PI_CRC64_NVME ? 64 : 16,
		 start = (uint16_t)(layout->pi_offset * 8);
	const char *why;

	/* block/t10-pi.c walks through the pages of the metadata by whole tuples: none may cross one. */
	if (!checksum || !is_power_of_two(layout->metadata) || !is_power_of_two(layout->interval) ||
	    layout->pi_size != (guard == 64 ? 16u : 8u) ||
	    layout->pi_offset + layout->pi_size > layout->metadata)
		return -EOPNOTSUPP;
	*out = (struct seal_pi_profile){
		.name = "device",
		/* The guard covers the metadata before the tuple as well. */
		.granularity = layout->interval + layout->pi_offset,
		.width = layout->metadata,
		.checksum = checksum,
		.reftag = layout->ref_size ? SEAL_PI_SEQUENCE : SEAL_PI_CONSTANT,
		.escape = layout->ref_size ? SEAL_PI_ESCAPE_TAG : SEAL_PI_ESCAPE_TAG_REFTAG,
		.fields = 3,
		.field = {{SEAL_PI_CHECKSUM, start, guard, SEAL_PI_BIG_ENDIAN},
			  {SEAL_PI_TAG, start + guard, 16, SEAL_PI_BIG_ENDIAN},
			  {SEAL_PI_REFTAG, start + guard + 16, guard == 64 ? 48 : 32,
			   SEAL_PI_BIG_ENDIAN}},
	};
	return seal_pi_check(out, &why) < 0 ? -EOPNOTSUPP : 0;
}

int seal_pi_supported(const struct seal_pi_capability *layout)
{
	struct seal_pi_profile profile;

	return pi_check_profile(layout, &profile);
}

/* The guarded bytes of blocks [first, first + count): how many pieces. */
static int pieces_of(const struct seal_pi_capability *layout, const void *data, const void *tuples,
		     uint32_t first, uint32_t count, struct iovec *out)
{
	char *at = (char *)data + (uint64_t)first * layout->interval;
	char *tuple = (char *)tuples + (uint64_t)first * layout->metadata;
	int pieces = 0;

	if (!layout->pi_offset) {
		out[0] = (struct iovec){at, (size_t)count * layout->interval};
		return 1;
	}
	for (uint32_t i = 0; i < count; i++) {
		out[pieces++] = (struct iovec){at, layout->interval};
		out[pieces++] = (struct iovec){tuple, layout->pi_offset};
		at += layout->interval;
		tuple += layout->metadata;
	}
	return pieces;
}

static uint64_t low_bits(uint64_t value, unsigned bits)
{
	return value & ((1ull << bits) - 1);
}

static struct seal_pi_request request_of(const struct seal_pi_profile *profile,
					 const struct pi_expected *expected, uint32_t first)
{
	return (struct seal_pi_request){
		.profile = profile,
		.fields = expected->fields,
		.tag = expected->tag,
		/* Of a type 3 tuple 0 is generated; whoever verifies it is refused before. */
		.reftag = profile->reftag == SEAL_PI_SEQUENCE
				  ? low_bits(expected->reftag + first, profile->field[2].width)
				  : 0,
	};
}

static uint32_t batch_of(const struct seal_pi_capability *layout, uint32_t left)
{
	return layout->pi_offset && left > BATCH ? BATCH : left;
}

int pi_check_generate(const struct seal_pi_capability *layout,
		      const struct seal_pi_profile *profile, const void *data, void *tuples,
		      uint32_t count, const struct pi_expected *expected)
{
	struct iovec pieces[2 * BATCH];

	for (uint32_t first = 0; expected->fields && first < count;) {
		uint32_t some = batch_of(layout, count - first);
		int number = pieces_of(layout, data, tuples, first, some, pieces);
		struct seal_pi_request request = request_of(profile, expected, first);
		int64_t made = seal_pi_generate(&request, pieces, number,
						(char *)tuples + (uint64_t)first * layout->metadata,
						(size_t)some * layout->metadata);

		if (made < 0)
			return (int)made;
		first += some;
	}
	return 0;
}

static uint64_t number_of(const uint8_t *bytes, uint32_t length)
{
	uint64_t value = 0;

	for (uint32_t i = 0; i < length && i < sizeof(value); i++)
		value = value << 8 | bytes[i];
	return value;
}

int pi_check_compare(const struct seal_pi_capability *layout, const struct seal_pi_profile *profile,
		     const void *data, const void *tuples, uint32_t count,
		     const struct pi_expected *expected, struct seal_channel_error *out)
{
	struct iovec pieces[2 * BATCH];
	struct seal_pi_error error;

	for (uint32_t first = 0; expected->fields && first < count;) {
		uint32_t some = batch_of(layout, count - first);
		int number = pieces_of(layout, data, tuples, first, some, pieces);
		struct seal_pi_request request = request_of(profile, expected, first);
		int64_t wrong =
			seal_pi_verify(&request, pieces, number,
				       (const char *)tuples + (uint64_t)first * layout->metadata,
				       (size_t)some * layout->metadata, &error, 1);

		if (wrong < 0)
			return (int)wrong;
		if (wrong) {
			out->index = first + (uint32_t)error.block;
			out->field = 1u << error.meaning;
			out->expected = number_of(error.expected, error.expected_length);
			out->found = number_of(error.found, error.found_length);
			return 1;
		}
		first += some;
	}
	return 0;
}

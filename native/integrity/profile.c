#include "pi.h"
#include "sum.h"

#include <errno.h>
#include <string.h>

uint64_t seal_pi_get(const void *tag, const struct seal_pi_field *field)
{
	const uint8_t *bytes = tag;
	unsigned first = field->offset / 8, last = (field->offset + field->width - 1u) / 8;
	unsigned spare = 7 - (field->offset + field->width - 1u) % 8;
	uint64_t value = 0;

	if (field->order == SEAL_PI_LITTLE_ENDIAN) {
		for (unsigned i = last + 1; i-- > first;)
			value = value << 8 | bytes[i];
		return value;
	}
	/* A field of 64 bits that begins inside a byte spans nine. */
	for (unsigned i = first; i < last; i++)
		value = value << 8 |
			(i == first ? bytes[i] & 0xffu >> field->offset % 8 : bytes[i]);
	if (first == last)
		return (bytes[first] & 0xffu >> field->offset % 8) >> spare;
	return value << (8 - spare) | bytes[last] >> spare;
}

static void put_bit(uint8_t *bytes, unsigned at, unsigned bit)
{
	uint8_t mask = (uint8_t)(0x80u >> at % 8);

	bytes[at / 8] = (uint8_t)(bit ? bytes[at / 8] | mask : bytes[at / 8] & ~mask);
}

void seal_pi_put(void *tag, const struct seal_pi_field *field, uint64_t value)
{
	uint8_t *at = (uint8_t *)tag + field->offset / 8;
	unsigned bytes = field->width / 8;

	if (field->offset % 8 || field->width % 8) {
		for (unsigned i = field->width; i--; value >>= 1)
			put_bit(tag, field->offset + i, value & 1);
		return;
	}
	if (field->order == SEAL_PI_LITTLE_ENDIAN)
		for (unsigned i = 0; i < bytes; i++, value >>= 8)
			at[i] = (uint8_t)value;
	else
		for (unsigned i = bytes; i--; value >>= 8)
			at[i] = (uint8_t)value;
}

static const char *wrong_field(const struct seal_pi_profile *profile,
			       const struct seal_pi_field *field)
{
	unsigned whole = seal_sum_width(profile->checksum);

	if (field->meaning > SEAL_PI_STORAGE)
		return "a field's meaning is unknown";
	if (!field->width || field->offset + field->width > profile->width * 8)
		return "a field lies outside of the tag";
	if (field->order > SEAL_PI_LITTLE_ENDIAN)
		return "a byte order is unknown";
	if (field->order == SEAL_PI_LITTLE_ENDIAN && (field->offset % 8 || field->width % 8))
		return "a little endian field is not of whole bytes";
	if (field->meaning != SEAL_PI_CHECKSUM)
		return field->width > 64 ? "a tag is wider than 64 bits" : NULL;
	if (profile->checksum == SEAL_PI_NO_CHECKSUM)
		return "a checksum has no algorithm";
	if (field->offset % 8 || field->width % 8)
		return "a checksum is not of whole bytes";
	if (seal_sum_is_number(profile->checksum))
		return field->width == whole ? NULL
					     : "a checksum is not as wide as its algorithm's";
	if (field->width > whole || (profile->checksum == SEAL_PI_ED25519 && field->width < whole))
		return "a checksum is not as wide as its algorithm's";
	return NULL;
}

static const char *wrong(const struct seal_pi_profile *profile)
{
	unsigned seen = 0;
	uint64_t used[SEAL_PI_MAX_TAG * 8 / 64] = {0};

	if (!memchr(profile->name, 0, sizeof(profile->name)))
		return "the name does not end";
	if (!profile->width || profile->width > SEAL_PI_MAX_TAG)
		return "the tag is empty, or too wide";
	if (!profile->fields || profile->fields > SEAL_PI_MAX_FIELDS)
		return "there is no field, or there are too many";
	if (profile->checksum >= SEAL_PI_CHECKSUMS || profile->reftag >= SEAL_PI_REFTAGS ||
	    profile->escape > SEAL_PI_ESCAPE_TAG_REFTAG)
		return "an algorithm is unknown";
	for (unsigned i = 0; i < profile->fields; i++) {
		const struct seal_pi_field *field = &profile->field[i];
		const char *why = wrong_field(profile, field);

		if (why)
			return why;
		if (seen & 1u << field->meaning)
			return "a field is there twice";
		seen |= 1u << field->meaning;
		for (unsigned bit = field->offset; bit < field->offset + field->width; bit++) {
			if (used[bit / 64] >> bit % 64 & 1)
				return "fields overlap";
			used[bit / 64] |= 1ull << bit % 64;
		}
	}
	if ((seen >> SEAL_PI_REFTAG & 1) != (profile->reftag != SEAL_PI_NO_REFTAG))
		return "a reference tag has no algorithm, or an algorithm no reference tag";
	if (!(seen >> SEAL_PI_CHECKSUM & 1) && profile->checksum != SEAL_PI_NO_CHECKSUM)
		return "an algorithm has no checksum";
	if (profile->escape && !(seen >> SEAL_PI_TAG & 1))
		return "an escape needs a tag";
	return NULL;
}

int seal_pi_check(const struct seal_pi_profile *profile, const char **why)
{
	const char *found = wrong(profile);

	if (why)
		*why = found;
	return found ? -EINVAL : 0;
}

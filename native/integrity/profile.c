#include "field.h"
#include "pi.h"
#include "sum.h"

#include <errno.h>
#include <string.h>

uint64_t seal_pi_get(const void *tag, const struct seal_pi_field *field)
{
	return get_field(tag, field);
}

void seal_pi_put(void *tag, const struct seal_pi_field *field, uint64_t value)
{
	put_field(tag, field, value);
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

static int overlaps_earlier(const struct seal_pi_profile *profile, unsigned at)
{
	const struct seal_pi_field *one = &profile->field[at];

	for (unsigned i = 0; i < at; i++) {
		const struct seal_pi_field *other = &profile->field[i];

		if (one->offset < other->offset + other->width &&
		    other->offset < one->offset + one->width)
			return 1;
	}
	return 0;
}

static const char *wrong(const struct seal_pi_profile *profile)
{
	unsigned seen = 0;

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
		if (overlaps_earlier(profile, i))
			return "fields overlap";
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

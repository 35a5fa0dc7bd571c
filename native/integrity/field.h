/* Fields of a tag, wherever their bits lie: inline, as every block has several. */
#ifndef SEALSVC_INTEGRITY_FIELD_H
#define SEALSVC_INTEGRITY_FIELD_H

#include <endian.h>
#include <string.h>

#include "pi.h"

/* `bytes` bytes from or to the front of a word; of the usual widths without a call. */
static inline void copy_bytes(void *to, const void *from, unsigned bytes)
{
	switch (bytes) {
	case 2:
		memcpy(to, from, 2);
		break;
	case 4:
		memcpy(to, from, 4);
		break;
	case 8:
		memcpy(to, from, 8);
		break;
	default:
		memcpy(to, from, bytes);
	}
}

static inline int is_whole_bytes(const struct seal_pi_field *field)
{
	return ((field->offset | field->width) & 7) == 0;
}

static inline uint64_t get_bits(const uint8_t *bytes, const struct seal_pi_field *field)
{
	uint64_t value = 0;

	for (unsigned i = field->offset; i < (unsigned)field->offset + field->width; i++)
		value = value << 1 | (bytes[i / 8] >> (7 - i % 8) & 1);
	return value;
}

static inline void put_bits(uint8_t *bytes, const struct seal_pi_field *field, uint64_t value)
{
	for (unsigned i = field->offset + field->width; i-- > field->offset; value >>= 1) {
		uint8_t mask = (uint8_t)(0x80u >> i % 8);

		bytes[i / 8] = (uint8_t)(value & 1 ? bytes[i / 8] | mask : bytes[i / 8] & ~mask);
	}
}

static inline uint64_t get_field(const void *tag, const struct seal_pi_field *field)
{
	const uint8_t *bytes = tag;
	uint64_t value = 0;

	if (!is_whole_bytes(field))
		return get_bits(bytes, field);
	copy_bytes(&value, bytes + field->offset / 8, field->width / 8u);
	if (field->order == SEAL_PI_LITTLE_ENDIAN)
		return le64toh(value);
	return be64toh(value) >> (64 - field->width);
}

static inline void put_field(void *tag, const struct seal_pi_field *field, uint64_t value)
{
	uint8_t *bytes = tag;

	if (!is_whole_bytes(field)) {
		put_bits(bytes, field, value);
		return;
	}
	value = field->order == SEAL_PI_LITTLE_ENDIAN ? htole64(value)
						      : htobe64(value << (64 - field->width));
	copy_bytes(bytes + field->offset / 8, &value, field->width / 8u);
}

#endif

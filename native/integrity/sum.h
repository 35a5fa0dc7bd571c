/* Checksums of data that comes in pieces, one interface for all algorithms. */
#ifndef SEALSVC_INTEGRITY_SUM_H
#define SEALSVC_INTEGRITY_SUM_H

#include "crc.h"
#include "pi.h"

/* One per call of the engine. Numbers are in `value`; hashes in libcrypto's context. */
struct seal_sum {
	enum seal_pi_checksum algorithm;
	uint64_t value;
	seal_crc_call add;	     /* of a CRC */
	seal_crc_blocks_call blocks; /* of a CRC; NULL: none */
	int odd;		     /* RFC 1071: the data so far had an odd number of bytes */
	void *context, *key;
	const void *hmac_key;
	size_t hmac_key_length;
	int verifying;
};

/* 0, -EINVAL (the key does not fit), -ENOMEM or -ENOSYS (libcrypto refuses the algorithm). */
int seal_sum_open(struct seal_sum *sum, enum seal_pi_checksum algorithm, const void *key,
		  size_t key_length, int verifying);
void seal_sum_close(struct seal_sum *sum);

int seal_sum_is_number(enum seal_pi_checksum algorithm);
/* Bits of the whole checksum; a narrower field has the first of them (a hash) or the last. */
unsigned seal_sum_width(enum seal_pi_checksum algorithm);

uint64_t seal_sum_ip(const void *data, size_t length);
/* A number, of data in one piece: the short way. */
static inline uint64_t seal_sum_whole(const struct seal_sum *sum, const void *data, size_t length)
{
	return sum->add ? sum->add(0, data, length) : seal_sum_ip(data, length);
}

/* The same of `count` blocks of `size` bytes in a row. */
static inline void seal_sum_blocks(const struct seal_sum *sum, const uint8_t *data, size_t size,
				   size_t count, uint64_t *out)
{
	if (sum->blocks && seal_crc_is_block(size)) {
		sum->blocks(data, size, count, out);
		return;
	}
	for (size_t i = 0; i < count; i++)
		out[i] = seal_sum_whole(sum, data + i * size, size);
}

int seal_sum_begin(struct seal_sum *sum);
int seal_sum_add(struct seal_sum *sum, const void *data, size_t length);
uint64_t seal_sum_number(struct seal_sum *sum);
/* `out` has room for SEAL_PI_MAX_VALUE bytes. A signature is made here. */
int seal_sum_bytes(struct seal_sum *sum, uint8_t *out);
/* 1: the signature is of this data, 0: it is not, or -errno. */
int seal_sum_signed(struct seal_sum *sum, const uint8_t *signature);

#endif

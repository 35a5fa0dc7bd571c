/* CRCs: the fastest code that this processor has and that agrees with a table. */
#ifndef SEALSVC_INTEGRITY_CRC_H
#define SEALSVC_INTEGRITY_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Continues `crc`, the result of what came before (of nothing: 0). Inversions of the register before
 * and after, where the standard has them, are inside. */
typedef uint64_t (*seal_crc_call)(uint64_t crc, const void *data, size_t length);

/* The CRCs of `count` blocks in a row, of `size` bytes each: at least SEAL_CRC_BLOCK, and a multiple of
 * SEAL_CRC_UNIT. */
typedef void (*seal_crc_blocks_call)(const void *data, size_t size, size_t count, uint64_t *out);

#define SEAL_CRC_BLOCK 256u
#define SEAL_CRC_UNIT 64u

static inline int seal_crc_is_block(size_t size)
{
	return size >= SEAL_CRC_BLOCK && size % SEAL_CRC_UNIT == 0;
}

struct seal_crc {
	seal_crc_call add;
	seal_crc_blocks_call blocks; /* NULL: there is none that is faster */
	const char *variant;	     /* which code it is */
};

/* The choice is made once, by whoever asks first. */
const struct seal_crc *seal_crc16_t10dif(void);
const struct seal_crc *seal_crc32c(void);
const struct seal_crc *seal_crc64_nvme(void);

/* The tables themselves: what runs everywhere, and what the others are tested against. */
uint64_t seal_crc16_t10dif_table(uint64_t crc, const void *data, size_t length);
uint64_t seal_crc32c_table(uint64_t crc, const void *data, size_t length);
uint64_t seal_crc64_nvme_table(uint64_t crc, const void *data, size_t length);

/* CRC32C (`reflected`), or the T10 CRC, of whole blocks; NULL where the processor cannot. */
seal_crc_blocks_call seal_crc_blocks_of(int reflected);

/* CRC64 by carry-less multiplication. */
int seal_crc64_can_fold(void);
uint64_t seal_crc64_nvme_fold(uint64_t crc, const void *data, size_t length);

#endif

/* CRCs: the fastest code that this processor has and that agrees with a table. */
#ifndef SEALSVC_INTEGRITY_CRC_H
#define SEALSVC_INTEGRITY_CRC_H

#include <stddef.h>
#include <stdint.h>

/* Continues `crc`, the result of what came before (of nothing: 0). Inversions of the register before
 * and after, where the standard has them, are inside. */
typedef uint64_t (*seal_crc_call)(uint64_t crc, const void *data, size_t length);

struct seal_crc {
	seal_crc_call add;
	const char *variant; /* which code it is */
};

/* The choice is made once, by whoever asks first. */
const struct seal_crc *seal_crc16_t10dif(void);
const struct seal_crc *seal_crc32c(void);
const struct seal_crc *seal_crc64_nvme(void);

/* The tables themselves: what runs everywhere, and what the others are tested against. */
uint64_t seal_crc16_t10dif_table(uint64_t crc, const void *data, size_t length);
uint64_t seal_crc32c_table(uint64_t crc, const void *data, size_t length);
uint64_t seal_crc64_nvme_table(uint64_t crc, const void *data, size_t length);

/* CRC64 by carry-less multiplication. */
int seal_crc64_can_fold(void);
uint64_t seal_crc64_nvme_fold(uint64_t crc, const void *data, size_t length);

#endif

#include "crc.h"

#include <pthread.h>

#ifdef SEAL_WITH_ISAL
#include <isa-l/crc.h>
#endif

#define SELF_TEST_BYTES 4201
#define SELF_TEST_BLOCKS 5

#ifdef SEAL_WITH_ISAL
/* ISA-L 2.30 leaves the upper halves of the vector registers dirty, after which each SSE instruction
 * of ours would wait for the one before: a call of 512 bytes took twenty times as long. */
#ifdef __x86_64__
__attribute__((target("avx"))) static void clean_registers(void)
{
	__builtin_ia32_vzeroupper();
}
#endif

static int has_avx;

static inline void leave_isal(void)
{
#ifdef __x86_64__
	if (has_avx)
		clean_registers();
#endif
}

static uint64_t isal_crc16_t10dif(uint64_t crc, const void *data, size_t length)
{
	uint64_t result = crc16_t10dif((uint16_t)crc, data, length);

	leave_isal();
	return result;
}

/* ISA-L takes an int, and leaves both inversions to its caller. */
static uint64_t isal_crc32c(uint64_t crc, const void *data, size_t length)
{
	const uint8_t *at = data;
	uint32_t value = (uint32_t)~crc;

	while (length) {
		int part = length > 1 << 30 ? 1 << 30 : (int)length;

		/* Its prototype has no const; it does not write. */
		value = crc32_iscsi((unsigned char *)(uintptr_t)at, part, value);
		at += part;
		length -= (size_t)part;
	}
	leave_isal();
	return (uint32_t)~value;
}
#endif

static struct seal_crc t10dif, crc32c, crc64;

static pthread_once_t chosen = PTHREAD_ONCE_INIT;

static void fill(uint8_t *data, size_t size)
{
	uint32_t state = 1;

	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
}

/* Whole, in two parts, from odd addresses, and of nothing. */
static int agree(seal_crc_call one, seal_crc_call other)
{
	static uint8_t data[SELF_TEST_BYTES];

	fill(data, sizeof(data));
	for (size_t length = 0; length < sizeof(data); length += length < 300 ? 1 : 173) {
		const uint8_t *at = data + length % 17;
		size_t half = length / 3, size = length > 17 ? length - 17 : length;

		if (at + size > data + sizeof(data))
			size = (size_t)(data + sizeof(data) - at);
		if (half > size)
			half = size;
		if (one(0, at, size) != other(0, at, size))
			return 0;
		if (one(one(0, at, half), at + half, size - half) != other(0, at, size))
			return 0;
	}
	return 1;
}

static struct seal_crc choose(seal_crc_call fast, seal_crc_call table, const char *name,
			      const char *failed)
{
	if (!fast)
		return (struct seal_crc){table, NULL, "table"};
	if (!agree(fast, table))
		return (struct seal_crc){table, NULL, failed};
	return (struct seal_crc){fast, NULL, name};
}

/* Blocks of each size that the loops differ in, some in a row, from odd addresses. */
static int blocks_agree(seal_crc_blocks_call blocks, seal_crc_call table)
{
	static uint8_t data[SELF_TEST_BYTES];
	uint64_t found[SELF_TEST_BLOCKS];

	fill(data, sizeof(data));
	for (size_t size = SEAL_CRC_BLOCK; size <= 4096; size += SEAL_CRC_UNIT) {
		const uint8_t *at = data + size / SEAL_CRC_UNIT % 9;
		size_t count = (SELF_TEST_BYTES - 9) / size;

		if (count > SELF_TEST_BLOCKS)
			count = SELF_TEST_BLOCKS;
		blocks(at, size, count, found);
		for (size_t i = 0; i < count; i++)
			if (found[i] != table(0, at + i * size, size))
				return 0;
	}
	return 1;
}

static void choose_blocks(struct seal_crc *crc, int reflected, seal_crc_call table,
			  const char *name, const char *failed)
{
	seal_crc_blocks_call blocks = seal_crc_blocks_of(reflected);

	if (!blocks)
		return;
	if (blocks_agree(blocks, table)) {
		crc->blocks = blocks;
		crc->variant = name;
	} else {
		crc->variant = failed;
	}
}

static void choose_all(void)
{
	seal_crc_call fast16 = NULL, fast32 = NULL;
	seal_crc_call fast64 = seal_crc64_can_fold() ? seal_crc64_nvme_fold : NULL;

#ifdef SEAL_WITH_ISAL
#ifdef __x86_64__
	has_avx = __builtin_cpu_supports("avx") != 0;
#endif
	fast16 = isal_crc16_t10dif;
	fast32 = isal_crc32c;
#endif
	t10dif = choose(fast16, seal_crc16_t10dif_table, "isa-l",
			"table (isa-l failed its self-test)");
	crc32c = choose(fast32, seal_crc32c_table, "isa-l", "table (isa-l failed its self-test)");
#ifdef SEAL_WITH_ISAL
	choose_blocks(&t10dif, 0, seal_crc16_t10dif_table, "isa-l; whole blocks: vpclmulqdq",
		      "isa-l (vpclmulqdq failed its self-test)");
	choose_blocks(&crc32c, 1, seal_crc32c_table, "isa-l; whole blocks: vpclmulqdq",
		      "isa-l (vpclmulqdq failed its self-test)");
#endif
	crc64 = choose(fast64, seal_crc64_nvme_table, "pclmul",
		       "table (pclmul failed its self-test)");
}

const struct seal_crc *seal_crc16_t10dif(void)
{
	pthread_once(&chosen, choose_all);
	return &t10dif;
}

const struct seal_crc *seal_crc32c(void)
{
	pthread_once(&chosen, choose_all);
	return &crc32c;
}

const struct seal_crc *seal_crc64_nvme(void)
{
	pthread_once(&chosen, choose_all);
	return &crc64;
}

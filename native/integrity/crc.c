#include "crc.h"

#include <pthread.h>

#ifdef SEAL_WITH_ISAL
#include <isa-l/crc.h>
#endif

#define SELF_TEST_BYTES 4201

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

/* Whole, in two parts, from odd addresses, and of nothing. */
static int agree(seal_crc_call one, seal_crc_call other)
{
	static uint8_t data[SELF_TEST_BYTES];
	uint32_t state = 1;

	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24);
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
		return (struct seal_crc){table, "table"};
	if (!agree(fast, table))
		return (struct seal_crc){table, failed};
	return (struct seal_crc){fast, name};
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

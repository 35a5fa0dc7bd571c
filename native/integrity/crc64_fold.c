#include "crc.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <pthread.h>

#define POLYNOMIAL 0x9a6c9329ac4bc9b5u
#define LANES 8
#define BLOCK (LANES * 16)

/* Folding by carry-less multiplication (Gopal and others, Intel 2009), bits reflected: bit i of a
 * 64-bit value is the coefficient of x^(63-i). The product of two such values comes out multiplied
 * by x, which the exponents below make up for.
 *
 * Moving 128 bits forward by n bits: low * x^(n+64) + high * x^n, modulo the polynomial. */
static struct {
	uint64_t low, high;
} by_block, by_lane[LANES]; /* by_lane[i]: over i lanes */

static pthread_once_t made = PTHREAD_ONCE_INIT;

/* x^exponent modulo the polynomial. */
static uint64_t power(unsigned exponent)
{
	uint64_t value = 1ull << 63;

	while (exponent--)
		value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
	return value;
}

static void make_powers(void)
{
	by_block.low = power(BLOCK * 8 + 63);
	by_block.high = power(BLOCK * 8 - 1);
	for (unsigned i = 1; i < LANES; i++) {
		by_lane[i].low = power(i * 128 + 63);
		by_lane[i].high = power(i * 128 - 1);
	}
}

int seal_crc64_can_fold(void)
{
	return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
}

__attribute__((target("pclmul,sse4.1"))) static inline __m128i moved(__m128i value, __m128i by)
{
	return _mm_xor_si128(_mm_clmulepi64_si128(value, by, 0x00),
			     _mm_clmulepi64_si128(value, by, 0x11));
}

__attribute__((target("pclmul,sse4.1"))) static inline __m128i power_of(uint64_t low, uint64_t high)
{
	return _mm_set_epi64x((long long)high, (long long)low);
}

/* The data, of at least BLOCK bytes and a multiple of 16, as 16 bytes with the same remainder. */
__attribute__((target("pclmul,sse4.1"))) static void fold(uint64_t crc, const __m128i *at,
							  size_t left, uint8_t out[16])
{
	__m128i lane[LANES], by = power_of(by_block.low, by_block.high), sum;

	for (int i = 0; i < LANES; i++)
		lane[i] = _mm_loadu_si128(at + i);
	lane[0] = _mm_xor_si128(lane[0], power_of(crc, 0));
	for (at += LANES, left -= BLOCK; left >= BLOCK; at += LANES, left -= BLOCK)
		for (int i = 0; i < LANES; i++)
			lane[i] = _mm_xor_si128(moved(lane[i], by), _mm_loadu_si128(at + i));
	sum = lane[LANES - 1];
	for (int i = 0; i < LANES - 1; i++) {
		int steps = LANES - 1 - i;

		by = power_of(by_lane[steps].low, by_lane[steps].high);
		sum = _mm_xor_si128(sum, moved(lane[i], by));
	}
	by = power_of(by_lane[1].low, by_lane[1].high);
	for (; left; at++, left -= 16)
		sum = _mm_xor_si128(moved(sum, by), _mm_loadu_si128(at));
	_mm_storeu_si128((__m128i *)out, sum);
}

uint64_t seal_crc64_nvme_fold(uint64_t crc, const void *data, size_t length)
{
	size_t whole = length & ~(size_t)15;
	const uint8_t *at = data;
	uint8_t rest[16];

	if (length < BLOCK)
		return seal_crc64_nvme_table(crc, data, length);
	pthread_once(&made, make_powers);
	fold(~crc, data, whole, rest);
	/* The table's register is inverted at the start: of all ones it is 0. */
	crc = seal_crc64_nvme_table(~0ull, rest, sizeof(rest));
	return seal_crc64_nvme_table(crc, at + whole, length - whole);
}

#else

int seal_crc64_can_fold(void)
{
	return 0;
}

uint64_t seal_crc64_nvme_fold(uint64_t crc, const void *data, size_t length)
{
	return seal_crc64_nvme_table(crc, data, length);
}

#endif

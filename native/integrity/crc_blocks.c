#include "crc.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <pthread.h>

/* CRCs of whole blocks by carry-less multiplication of four times 128 bits at once (VPCLMULQDQ). Blocks do
 * not depend on each other: the processor begins the next ones while one is being reduced.
 *
 * Each CRC is taken as one of 64 bits, whose polynomial P is its own times a power of x: the lower
 * coefficients of the remainder are 0. Bits are reflected, as in crc64_fold.c: bit i of a 64-bit value is
 * the coefficient of x^(63-i), and a product comes out multiplied by x, which exponents and quotients make
 * up for. The T10 CRC is not reflected: the bits of each byte are turned round as it is loaded (GFNI), which
 * keeps the unit that multiplies free; a shuffle of bytes would not. */
#define WIDTH 64u	  /* bytes of a register */
#define STEP (4u * WIDTH) /* bytes that are folded at once: the least of a block */
#define TARGET "avx512f,avx512bw,avx512dq,avx512vl,vpclmulqdq,pclmul,gfni,sse4.1"
#define T10DIF 0xedd1u		/* 8BB7h, reflected */
#define CRC32C 0x82f63b78u	/* 1EDC6F41h, reflected */
#define TURN 0x8040201008040201 /* as a matrix: the bits of a byte in reverse order */

/* Moving 128 bits forward: see crc64_fold.c. */
struct move {
	uint64_t low, high;
};

static struct powers {
	struct move by_step, by_register[3], by_lane[4]; /* [0]: over the most; by_lane[3]: none */
	uint64_t reduce, quotient, rest; /* x^128 / x mod P; floor(x^127 / P); (P - x^64) / x */
} of_t10dif, of_crc32c;

static pthread_once_t made = PTHREAD_ONCE_INIT;

/* x^exponent modulo P. */
static uint64_t power(uint64_t polynomial, unsigned exponent)
{
	uint64_t value = 1ull << 63;

	while (exponent--)
		value = value >> 1 ^ (value & 1 ? polynomial : 0);
	return value;
}

static struct move move_over(uint64_t polynomial, unsigned bytes)
{
	return (struct move){power(polynomial, bytes * 8 + 63), power(polynomial, bytes * 8 - 1)};
}

/* The coefficients that leave the register while x^63 becomes x^127. */
static uint64_t quotient(uint64_t polynomial)
{
	uint64_t value = 1, result = 0;

	for (int i = 0; i < 64; i++) {
		uint64_t bit = value & 1;

		result |= bit << i;
		value = value >> 1 ^ (bit ? polynomial : 0);
	}
	return result;
}

static void make_powers(struct powers *out, uint64_t polynomial)
{
	out->by_step = move_over(polynomial, STEP);
	for (unsigned i = 0; i < 3; i++) {
		out->by_register[i] = move_over(polynomial, (3 - i) * WIDTH);
		out->by_lane[i] = move_over(polynomial, (3 - i) * 16);
	}
	out->by_lane[3] = (struct move){0, 0};
	out->reduce = power(polynomial, 127);
	out->quotient = quotient(polynomial);
	out->rest = polynomial << 1;
}

static void make_both(void)
{
	make_powers(&of_t10dif, T10DIF);
	make_powers(&of_crc32c, CRC32C);
}

__attribute__((target(TARGET), always_inline)) static inline __m512i load(const uint8_t *at,
									  int turned)
{
	__m512i value = _mm512_loadu_si512(at);

	return turned ? _mm512_gf2p8affine_epi64_epi8(value, _mm512_set1_epi64((long long)TURN), 0)
		      : value;
}

__attribute__((target(TARGET), always_inline)) static inline __m512i moved(__m512i value,
									   __m512i by, __m512i more)
{
	return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(value, by, 0x00),
					 _mm512_clmulepi64_epi128(value, by, 0x11), more, 0x96);
}

__attribute__((target(TARGET), always_inline)) static inline __m512i
everywhere(const struct move *by)
{
	return _mm512_broadcast_i64x2(_mm_loadu_si128((const __m128i *)by));
}

/* 128 bits with the same remainder as the block, whose first bits `start` inverts. */
__attribute__((target(TARGET), always_inline)) static inline __m128i
fold(const struct powers *powers, const uint8_t *at, size_t size, __m512i start, int turned)
{
	const __m512i by_step = everywhere(&powers->by_step);
	const uint8_t *end = at + size;
	__m512i a = _mm512_xor_si512(load(at, turned), start), b = load(at + WIDTH, turned);
	__m512i c = load(at + 2 * WIDTH, turned), d = load(at + 3 * WIDTH, turned);
	__m256i half;

	for (at += STEP; at + STEP <= end; at += STEP) {
		a = moved(a, by_step, load(at, turned));
		b = moved(b, by_step, load(at + WIDTH, turned));
		c = moved(c, by_step, load(at + 2 * WIDTH, turned));
		d = moved(d, by_step, load(at + 3 * WIDTH, turned));
	}
	d = moved(a, everywhere(&powers->by_register[0]), d);
	d = moved(b, everywhere(&powers->by_register[1]), d);
	d = moved(c, everywhere(&powers->by_register[2]), d);
	for (; at < end; at += WIDTH)
		d = moved(d, everywhere(&powers->by_register[2]), load(at, turned));
	d = moved(d, _mm512_loadu_si512(powers->by_lane), _mm512_maskz_mov_epi64(0xc0, d));
	half = _mm256_xor_si256(_mm512_castsi512_si256(d), _mm512_extracti64x4_epi64(d, 1));
	return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* The remainder of 128 bits times x^64, in the upper half: Barrett's reduction. */
__attribute__((target(TARGET), always_inline)) static inline __m128i
reduced(const struct powers *powers, __m128i value)
{
	const __m128i reduce = _mm_loadl_epi64((const __m128i *)&powers->reduce);
	const __m128i barrett = _mm_loadu_si128((const __m128i *)&powers->quotient);
	__m128i rest =
		_mm_xor_si128(_mm_clmulepi64_si128(value, reduce, 0x00), _mm_srli_si128(value, 8));
	__m128i times = _mm_clmulepi64_si128(rest, barrett, 0x00);

	return _mm_xor_si128(rest, _mm_clmulepi64_si128(times, barrett, 0x10));
}

__attribute__((target(TARGET))) static void t10dif_blocks(const void *data, size_t size,
							  size_t count, uint64_t *out)
{
	const __m128i turn = _mm_set1_epi64x((long long)TURN);

	for (const uint8_t *at = data; count--; at += size) {
		__m128i rest =
			reduced(&of_t10dif, fold(&of_t10dif, at, size, _mm512_setzero_si512(), 1));

		rest = _mm_gf2p8affine_epi64_epi8(rest, turn, 0);
		*out++ = __builtin_bswap16((uint16_t)_mm_extract_epi16(rest, 4));
	}
}

__attribute__((target(TARGET))) static void crc32c_blocks(const void *data, size_t size,
							  size_t count, uint64_t *out)
{
	const __m512i start = _mm512_zextsi128_si512(_mm_cvtsi32_si128(-1));

	for (const uint8_t *at = data; count--; at += size) {
		__m128i rest = reduced(&of_crc32c, fold(&of_crc32c, at, size, start, 0));

		*out++ = ~(uint32_t)_mm_extract_epi32(rest, 2);
	}
}

static int can_fold(void)
{
	return __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("gfni") &&
	       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
	       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("pclmul");
}

seal_crc_blocks_call seal_crc_blocks_of(int reflected)
{
	if (!can_fold())
		return NULL;
	pthread_once(&made, make_both);
	return reflected ? crc32c_blocks : t10dif_blocks;
}

#else

seal_crc_blocks_call seal_crc_blocks_of(int reflected)
{
	(void)reflected;
	return NULL;
}

#endif

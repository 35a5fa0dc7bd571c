/* The engine of protection information beside the bare call that computes its checksum, and a plain
 * read of the memory. One line for each profile and size: name, bytes, and the medians over rounds,
 * in nanoseconds for one call: generate, verify, the bare call, the read. */
#include <isa-l/crc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crc.h"
#include "pi.h"

#define MOST (1 << 20)
#define ROUNDS 31
#define BYTES_A_ROUND (8 << 20)

static uint8_t *data, *tags;
static volatile uint64_t sink;

static const struct row {
	const char *name;
	struct seal_pi_profile profile;
} rows[] = {
	{"t10-dif1-512",
	 {.granularity = 512,
	  .width = 8,
	  .checksum = SEAL_PI_CRC16_T10DIF,
	  .reftag = SEAL_PI_BLOCKNUM,
	  .fields = 3,
	  .field = {{SEAL_PI_CHECKSUM, 0, 16, 0},
		    {SEAL_PI_TAG, 16, 16, 0},
		    {SEAL_PI_REFTAG, 32, 32, 0}}}},
	{"t10-dif1-4096",
	 {.granularity = 4096,
	  .width = 8,
	  .checksum = SEAL_PI_CRC16_T10DIF,
	  .reftag = SEAL_PI_BLOCKNUM,
	  .fields = 3,
	  .field = {{SEAL_PI_CHECKSUM, 0, 16, 0},
		    {SEAL_PI_TAG, 16, 16, 0},
		    {SEAL_PI_REFTAG, 32, 32, 0}}}},
	{"crc32c-4k",
	 {.granularity = 4096,
	  .width = 4,
	  .checksum = SEAL_PI_CRC32C,
	  .fields = 1,
	  .field = {{SEAL_PI_CHECKSUM, 0, 32, 1}}}},
	{"nvme64-sts0-4096",
	 {.granularity = 4096,
	  .width = 16,
	  .checksum = SEAL_PI_CRC64_NVME,
	  .reftag = SEAL_PI_BLOCKNUM,
	  .fields = 3,
	  .field = {{SEAL_PI_CHECKSUM, 0, 64, 0},
		    {SEAL_PI_TAG, 64, 16, 0},
		    {SEAL_PI_REFTAG, 80, 48, 0}}}},
};

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time); /* whoever else runs here does not count */
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static uint32_t all(const struct seal_pi_profile *profile)
{
	uint32_t mask = 0;

	for (unsigned i = 0; i < profile->fields; i++)
		mask |= 1u << profile->field[i].meaning;
	return mask;
}

static struct seal_pi_request request_of(const struct row *row)
{
	return (struct seal_pi_request){.profile = &row->profile, .fields = all(&row->profile)};
}

static void generate(const struct row *row, size_t size)
{
	struct seal_pi_request request = request_of(row);
	struct iovec iovec = {data, size};

	if (seal_pi_generate(&request, &iovec, 1, tags, MOST) < 1)
		abort();
}

static void verify(const struct row *row, size_t size)
{
	struct seal_pi_request request = request_of(row);
	struct iovec iovec = {data, size};
	struct seal_pi_error error;

	if (seal_pi_verify(&request, &iovec, 1, tags, MOST, &error, 1))
		abort();
}

static void bare(const struct row *row, size_t size)
{
	uint32_t step = row->profile.granularity;
	uint64_t sum = 0;

	for (size_t at = 0; at < size; at += step)
		switch (row->profile.checksum) {
		case SEAL_PI_CRC16_T10DIF:
			sum += crc16_t10dif(0, data + at, step);
			break;
		case SEAL_PI_CRC32C:
			sum += crc32_iscsi(data + at, (int)step, ~0u);
			break;
		default: /* ISA-L 2.30 has none: our own, called bare */
			sum += seal_crc64_nvme_fold(0, data + at, step);
		}
	sink = sum;
}

__attribute__((optimize("O3"), target("avx2"))) static void scan(const struct row *row, size_t size)
{
	uint64_t sum = 0;

	(void)row;
	for (size_t at = 0; at < size; at += 8)
		sum += *(const uint64_t *)(data + at);
	sink = sum;
}

static double timed(void (*call)(const struct row *, size_t), const struct row *row, size_t size)
{
	int times = (int)(BYTES_A_ROUND / size);
	double begun;

	if (times > 20000)
		times = 20000;
	begun = now();
	for (int i = 0; i < times; i++)
		call(row, size);
	return (now() - begun) / times;
}

static int compare(const void *one, const void *other)
{
	double a = *(const double *)one, b = *(const double *)other;

	return (a > b) - (a < b);
}

int main(void)
{
	static void (*const calls[])(const struct row *, size_t) = {generate, verify, bare, scan};
	static const size_t sizes[] = {512, 4096, MOST};

	data = aligned_alloc(4096, MOST);
	tags = aligned_alloc(4096, MOST);
	if (!data || !tags)
		return 1;
	for (size_t i = 0; i < MOST; i++)
		data[i] = (uint8_t)(i * 2654435761u >> 13);
	for (size_t r = 0; r < sizeof(rows) / sizeof(*rows); r++)
		for (size_t s = 0; s < 3; s++) {
			double taken[4][ROUNDS];

			if (sizes[s] < rows[r].profile.granularity)
				continue;
			generate(&rows[r], sizes[s]);
			for (int round = 0; round < ROUNDS; round++)
				for (int i = 0; i < 4; i++)
					taken[i][round] = timed(calls[i], &rows[r], sizes[s]);
			printf("%s %zu", rows[r].name, sizes[s]);
			for (int i = 0; i < 4; i++) {
				qsort(taken[i], ROUNDS, sizeof(double), compare);
				printf(" %.1f", taken[i][ROUNDS / 2]);
			}
			printf("\n");
		}
	return 0;
}

#include "crc.h"

#include <endian.h>
#include <pthread.h>
#include <string.h>

#define CRC16_T10DIF 0x8bb7u	       /* most significant bit first */
#define CRC32C 0x82f63b78u	       /* reflected 1EDC6F41h */
#define CRC64_NVME 0x9a6c9329ac4bc9b5u /* reflected AD93D23594C93659h */

/* Slicing by 8 (Kounavis and Berry, 2005) for the reflected ones, one byte at a time for the other. */
static uint64_t reflected32[8][256], reflected64[8][256];
static uint16_t straight16[256];
static pthread_once_t made = PTHREAD_ONCE_INIT;

static void make_reflected(uint64_t table[8][256], uint64_t polynomial)
{
	for (unsigned i = 0; i < 256; i++) {
		uint64_t value = i;

		for (int bit = 0; bit < 8; bit++)
			value = value >> 1 ^ (value & 1 ? polynomial : 0);
		table[0][i] = value;
	}
	for (int slice = 1; slice < 8; slice++)
		for (unsigned i = 0; i < 256; i++) {
			uint64_t before = table[slice - 1][i];

			table[slice][i] = before >> 8 ^ table[0][before & 0xff];
		}
}

static void make_tables(void)
{
	make_reflected(reflected32, CRC32C);
	make_reflected(reflected64, CRC64_NVME);
	for (unsigned i = 0; i < 256; i++) {
		uint32_t value = i << 8;

		for (int bit = 0; bit < 8; bit++)
			value = value << 1 ^ (value & 0x8000 ? CRC16_T10DIF : 0);
		straight16[i] = (uint16_t)value;
	}
}

static uint64_t add_reflected(uint64_t table[8][256], uint64_t crc, const uint8_t *at,
			      size_t length)
{
	for (; length >= 8; at += 8, length -= 8) {
		uint64_t word;

		memcpy(&word, at, 8);
		crc ^= le64toh(word);
		crc = table[7][crc & 0xff] ^ table[6][crc >> 8 & 0xff] ^
		      table[5][crc >> 16 & 0xff] ^ table[4][crc >> 24 & 0xff] ^
		      table[3][crc >> 32 & 0xff] ^ table[2][crc >> 40 & 0xff] ^
		      table[1][crc >> 48 & 0xff] ^ table[0][crc >> 56];
	}
	for (; length; at++, length--)
		crc = crc >> 8 ^ table[0][(crc ^ *at) & 0xff];
	return crc;
}

uint64_t seal_crc16_t10dif_table(uint64_t crc, const void *data, size_t length)
{
	pthread_once(&made, make_tables);
	for (const uint8_t *at = data; length; at++, length--)
		crc = (uint16_t)(crc << 8 ^ straight16[(crc >> 8 ^ *at) & 0xff]);
	return crc;
}

uint64_t seal_crc32c_table(uint64_t crc, const void *data, size_t length)
{
	pthread_once(&made, make_tables);
	return (uint32_t)~add_reflected(reflected32, (uint32_t)~crc, data, length);
}

uint64_t seal_crc64_nvme_table(uint64_t crc, const void *data, size_t length)
{
	pthread_once(&made, make_tables);
	return ~add_reflected(reflected64, ~crc, data, length);
}

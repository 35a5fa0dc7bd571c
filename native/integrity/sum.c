#include "sum.h"

#include <byteswap.h>
#include <endian.h>
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

/* The table of the algorithms. `digest` is libcrypto's name of the hash under it. */
static const struct {
	unsigned width; /* bits */
	const char *digest;
	const struct seal_crc *(*crc)(void);
} rows[SEAL_PI_CHECKSUMS] = {
	[SEAL_PI_CRC16_T10DIF] = {16, NULL, seal_crc16_t10dif},
	[SEAL_PI_IP_CHECKSUM] = {16, NULL, NULL},
	[SEAL_PI_CRC32C] = {32, NULL, seal_crc32c},
	[SEAL_PI_CRC64_NVME] = {64, NULL, seal_crc64_nvme},
	[SEAL_PI_SHA1] = {160, "SHA1", NULL},
	[SEAL_PI_SHA256] = {256, "SHA256", NULL},
	[SEAL_PI_HMAC_SHA256] = {256, "SHA256", NULL},
	[SEAL_PI_ED25519] = {512, "SHA512", NULL},
};

#define HMAC_BLOCK 64 /* bytes of a block of SHA-256 */
#define SHA512_BYTES 64

int seal_sum_is_number(enum seal_pi_checksum algorithm)
{
	return !rows[algorithm].digest;
}

unsigned seal_sum_width(enum seal_pi_checksum algorithm)
{
	return rows[algorithm].width;
}

const char *seal_pi_variant(enum seal_pi_checksum algorithm)
{
	if (algorithm <= SEAL_PI_NO_CHECKSUM || algorithm >= SEAL_PI_CHECKSUMS)
		return "none";
	if (rows[algorithm].digest)
		return "libcrypto";
	return rows[algorithm].crc ? rows[algorithm].crc()->variant : "portable";
}

/* RFC 1071: the sum does not depend on the order of bytes in memory, so it is made in this machine's
 * and turned round at the end. Not folded until then: 2^32 words fit. */
static uint64_t add_words(uint64_t sum, const uint8_t *at, size_t length)
{
	uint64_t low = 0, high = 0;

	for (; length >= 8; at += 8, length -= 8) {
		uint64_t word;

		memcpy(&word, at, 8);
		low += (uint32_t)word;
		high += word >> 32;
	}
	for (; length >= 2; at += 2, length -= 2) {
		uint16_t word;

		memcpy(&word, at, 2);
		low += word;
	}
	if (length)
		low += htole16(*at);
	for (low = (low & 0xffffffff) + (low >> 32); high; high >>= 32)
		low += high & 0xffffffff;
	return sum + low;
}

static uint64_t folded(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static uint64_t ip_checksum(uint64_t sum)
{
	return (uint16_t)~be16toh((uint16_t)folded(sum));
}

/* After an odd number of bytes the next one is the second of its word: add it turned round. */
static void add_ip(struct seal_sum *sum, const uint8_t *at, size_t length)
{
	uint64_t words = folded(add_words(0, at, length));

	sum->value = folded(sum->value + (sum->odd ? bswap_16((uint16_t)words) : words));
	sum->odd ^= (int)(length & 1);
}

uint64_t seal_sum_ip(const void *data, size_t length)
{
	return ip_checksum(add_words(0, data, length));
}

/* -- with libcrypto -------------------------------------------------------------------------- */

static int open_signature(struct seal_sum *sum, const void *key, size_t length)
{
	if (!key || length != 32)
		return -EINVAL;
	sum->key = sum->verifying
			   ? EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, length)
			   : EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, key, length);
	return sum->key ? 0 : -EINVAL;
}

int seal_pi_public_key(const void *private_key, void *public_key)
{
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, private_key, 32);
	size_t length = 32;
	int done = key && EVP_PKEY_get_raw_public_key(key, public_key, &length) == 1;

	EVP_PKEY_free(key);
	return done ? 0 : -EINVAL;
}

/* A key longer than a block is hashed first (RFC 2104). */
static int open_hmac(struct seal_sum *sum, const void *key, size_t length)
{
	if (!key || !length || length > SEAL_PI_MAX_KEY)
		return -EINVAL;
	sum->hmac_key = key;
	sum->hmac_key_length = length;
	return 0;
}

int seal_sum_open(struct seal_sum *sum, enum seal_pi_checksum algorithm, const void *key,
		  size_t key_length, int verifying)
{
	EVP_MD_CTX *context;
	int result = 0;

	*sum = (struct seal_sum){.algorithm = algorithm, .verifying = verifying};
	if (rows[algorithm].crc) {
		sum->add = rows[algorithm].crc()->add;
		sum->blocks = rows[algorithm].crc()->blocks;
	}
	if (seal_sum_is_number(algorithm))
		return 0;
	if (algorithm == SEAL_PI_HMAC_SHA256)
		result = open_hmac(sum, key, key_length);
	if (algorithm == SEAL_PI_ED25519)
		result = open_signature(sum, key, key_length);
	if (result)
		return result;
	context = sum->context = EVP_MD_CTX_new();
	if (!context)
		result = -ENOMEM;
	else if (!EVP_DigestInit_ex(context, EVP_get_digestbyname(rows[algorithm].digest), NULL))
		result = -ENOSYS;
	if (result)
		seal_sum_close(sum);
	return result;
}

void seal_sum_close(struct seal_sum *sum)
{
	EVP_MD_CTX_free(sum->context);
	EVP_PKEY_free(sum->key);
	sum->context = sum->key = NULL;
}

static int begin_hash(struct seal_sum *sum)
{
	return EVP_DigestInit_ex(sum->context, NULL, NULL) == 1 ? 0 : -ENOSYS;
}

static int add_hash(struct seal_sum *sum, const void *data, size_t length)
{
	return EVP_DigestUpdate(sum->context, data, length) == 1 ? 0 : -ENOSYS;
}

static int end_hash(struct seal_sum *sum, uint8_t *out)
{
	unsigned length;

	return EVP_DigestFinal_ex(sum->context, out, &length) == 1 ? 0 : -ENOSYS;
}

/* One half of HMAC begins with the key, each byte changed by `pad`. */
static int add_key(struct seal_sum *sum, uint8_t pad)
{
	uint8_t block[HMAC_BLOCK] = {0};
	int result = 0;

	if (sum->hmac_key_length <= HMAC_BLOCK)
		memcpy(block, sum->hmac_key, sum->hmac_key_length);
	else if (!EVP_Digest(sum->hmac_key, sum->hmac_key_length, block, NULL, EVP_sha256(), NULL))
		return -ENOSYS;
	for (int i = 0; i < HMAC_BLOCK; i++)
		block[i] ^= pad;
	if (!(result = begin_hash(sum)))
		result = add_hash(sum, block, sizeof(block));
	return result;
}

static int end_hmac(struct seal_sum *sum, uint8_t *out)
{
	int result = end_hash(sum, out);

	if (!result && !(result = add_key(sum, 0x5c)) &&
	    !(result = add_hash(sum, out, seal_sum_width(SEAL_PI_SHA256) / 8)))
		result = end_hash(sum, out);
	return result;
}

int seal_sum_begin(struct seal_sum *sum)
{
	sum->value = 0;
	sum->odd = 0;
	if (sum->algorithm == SEAL_PI_HMAC_SHA256)
		return add_key(sum, 0x36);
	return sum->context ? begin_hash(sum) : 0;
}

int seal_sum_add(struct seal_sum *sum, const void *data, size_t length)
{
	if (sum->context)
		return add_hash(sum, data, length);
	if (sum->algorithm == SEAL_PI_IP_CHECKSUM)
		add_ip(sum, data, length);
	else
		sum->value = sum->add(sum->value, data, length);
	return 0;
}

uint64_t seal_sum_number(struct seal_sum *sum)
{
	return sum->algorithm == SEAL_PI_IP_CHECKSUM ? ip_checksum(sum->value) : sum->value;
}

static int sign(struct seal_sum *sum, const uint8_t *digest, uint8_t *out)
{
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	size_t length = SEAL_PI_MAX_VALUE;
	int done = context && EVP_DigestSignInit(context, NULL, NULL, NULL, sum->key) == 1 &&
		   EVP_DigestSign(context, out, &length, digest, SHA512_BYTES) == 1;

	EVP_MD_CTX_free(context);
	return done ? 0 : -ENOSYS;
}

int seal_sum_bytes(struct seal_sum *sum, uint8_t *out)
{
	uint8_t digest[SHA512_BYTES];
	int result;

	switch (sum->algorithm) {
	case SEAL_PI_HMAC_SHA256:
		return end_hmac(sum, out);
	case SEAL_PI_ED25519:
		result = end_hash(sum, digest);
		return result ? result : sign(sum, digest, out);
	default:
		return end_hash(sum, out);
	}
}

int seal_sum_signed(struct seal_sum *sum, const uint8_t *signature)
{
	uint8_t digest[SHA512_BYTES];
	EVP_MD_CTX *context;
	int result = end_hash(sum, digest);

	if (result)
		return result;
	context = EVP_MD_CTX_new();
	if (!context || EVP_DigestVerifyInit(context, NULL, NULL, NULL, sum->key) != 1)
		result = -ENOSYS;
	else /* anything but 1 is a signature that does not fit, malformed ones included */
		result = EVP_DigestVerify(context, signature, SEAL_PI_MAX_VALUE, digest,
					  sizeof(digest)) == 1;
	EVP_MD_CTX_free(context);
	return result;
}

/* Protection information: generated and verified, block by block, over scattered data.
 *
 * A profile says how a tag is laid out: which fields it has, at which bits, how wide, in which byte
 * order, and how each is computed. A block is `granularity` bytes of data; with granularity 0 (a
 * byte stream) all the data of one call has one tag. Nothing here allocates per block, keeps a
 * pointer, or takes a lock: callers on several threads do not disturb each other.
 */
#ifndef SEALSVC_INTEGRITY_PI_H
#define SEALSVC_INTEGRITY_PI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define SEAL_PI_NAME 32
#define SEAL_PI_MAX_FIELDS 4
#define SEAL_PI_MAX_TAG 128  /* bytes of one tag */
#define SEAL_PI_MAX_VALUE 64 /* bytes of one field: a checksum; other fields have 8 at most */
#define SEAL_PI_MAX_KEY 4096 /* bytes */

/* What a field means. As bits: 1 << meaning, in the masks of a request. */
enum seal_pi_meaning {
	SEAL_PI_TAG,	  /* the application's, opaque (T10: application tag) */
	SEAL_PI_CHECKSUM, /* of the block's data (T10: guard) */
	SEAL_PI_REFTAG,	  /* where the block belongs (T10: reference tag) */
	SEAL_PI_STORAGE,  /* the application's, opaque (NVMe: storage tag) */
};

enum seal_pi_checksum {
	SEAL_PI_NO_CHECKSUM,
	SEAL_PI_CRC16_T10DIF, /* SBC-4 4.22.4: polynomial 8BB7h */
	SEAL_PI_IP_CHECKSUM,  /* RFC 1071 */
	SEAL_PI_CRC32C,	      /* RFC 3720 B.4 */
	SEAL_PI_CRC64_NVME,   /* NVM Command Set 1.0c 5.2.1.3.4 */
	SEAL_PI_SHA1,
	SEAL_PI_SHA256,
	SEAL_PI_HMAC_SHA256, /* key: any bytes */
	SEAL_PI_ED25519,     /* RFC 8032, of the SHA-512 of the data; key: see seal_pi_request */
	SEAL_PI_CHECKSUMS,
};

enum seal_pi_reftag {
	SEAL_PI_NO_REFTAG,
	SEAL_PI_BLOCKNUM, /* the low bits of request.block + i (T10 type 1) */
	SEAL_PI_SEQUENCE, /* the low bits of request.reftag + i (T10 type 2) */
	SEAL_PI_CONSTANT, /* request.reftag in each block (T10 type 3) */
	SEAL_PI_REFTAGS,
};

/* Which tags are not checked at all, as T10 and NVMe have it. */
enum seal_pi_escape {
	SEAL_PI_NO_ESCAPE,
	SEAL_PI_ESCAPE_TAG,	   /* the tag is all ones (types 1 and 2) */
	SEAL_PI_ESCAPE_TAG_REFTAG, /* tag and reference tag are all ones (type 3) */
};

enum seal_pi_order { SEAL_PI_BIG_ENDIAN, SEAL_PI_LITTLE_ENDIAN };

/* `offset` and `width` are bits, counted from the most significant bit of the tag's first byte, so
 * that fields may share a byte (an NVMe storage tag of 12 bits). Little endian fields are whole
 * bytes. The checksum of a hash is a string of bytes and has no order. */
struct seal_pi_field {
	uint16_t meaning;
	uint16_t offset;
	uint16_t width;
	uint16_t order;
};

struct seal_pi_profile {
	char name[SEAL_PI_NAME]; /* ends with a NUL byte */
	uint32_t granularity;	 /* bytes of data for each tag; 0: a byte stream */
	uint32_t alignment; /* bytes: of the offset of the data in its file or device; 0: none */
	uint32_t width;	    /* bytes of a tag */
	uint16_t checksum;  /* enum seal_pi_checksum */
	uint16_t reftag;    /* enum seal_pi_reftag */
	uint16_t escape;    /* enum seal_pi_escape */
	uint16_t fields;    /* of `field` */
	struct seal_pi_field field[SEAL_PI_MAX_FIELDS];
};

/* Key of SEAL_PI_ED25519: to generate, the 32 bytes of the private key; to verify, the 32 bytes of
 * the public key. */
struct seal_pi_request {
	const struct seal_pi_profile *profile;
	const void *key;
	size_t key_length;
	uint64_t block;	  /* number of the first block: of the device, or of the file */
	uint64_t reftag;  /* of the first block, for SEAL_PI_SEQUENCE and SEAL_PI_CONSTANT */
	uint64_t tag;	  /* what SEAL_PI_TAG has */
	uint64_t storage; /* what SEAL_PI_STORAGE has */
	uint32_t fields;  /* which to generate, or to verify: bits 1 << meaning */
};

/* The values are as they stand in the tag, most significant byte first whatever the order; a field
 * that does not end at a byte has its bits at the end. `expected_length` 0: it cannot be known (a
 * signature). */
struct seal_pi_error {
	uint64_t block; /* 0: the first of the call */
	uint32_t meaning;
	uint32_t found_length, expected_length; /* bytes */
	uint8_t expected[SEAL_PI_MAX_VALUE];
	uint8_t found[SEAL_PI_MAX_VALUE];
};

/* Is this a profile that can be carried out? 0, or -EINVAL; `*why` says what is wrong. */
int seal_pi_check(const struct seal_pi_profile *profile, const char **why);

/* A thread keeps how the last profile it used is laid out: neither call may be made from a signal
 * handler that can interrupt the other. */

/* Fills in the fields of `request->fields` of one tag for each block, and leaves the others in
 * `tags` as they are: those the caller provides. Returns the number of blocks, or -errno: -EINVAL
 * (a profile that is none, data that is no whole number of blocks, a key that does not fit),
 * -ENOSPC (`tags` has no room for all), -ENOMEM. */
int64_t seal_pi_generate(const struct seal_pi_request *request, const struct iovec *data, int count,
			 void *tags, size_t length);

/* Compares the fields of `request->fields`. Returns the number of fields that differ (0: all is
 * well), of which the first `room` are in `errors`, or -errno as above. */
int64_t seal_pi_verify(const struct seal_pi_request *request, const struct iovec *data, int count,
		       const void *tags, size_t length, struct seal_pi_error *errors, size_t room);

/* The value of one field of a tag, and its change. For fields of 64 bits at most. */
uint64_t seal_pi_get(const void *tag, const struct seal_pi_field *field);
void seal_pi_put(void *tag, const struct seal_pi_field *field, uint64_t value);

/* The public half of a private key of SEAL_PI_ED25519, 32 bytes each: 0, or -EINVAL. */
int seal_pi_public_key(const void *private_key, void *public_key);

/* Which code computes the algorithm on this machine: "isa-l", "pclmul", "table", "libcrypto", ... A
 * faster one that did not agree with the table at the start is not used: "table (isa-l failed its
 * self-test)". Never NULL. */
const char *seal_pi_variant(enum seal_pi_checksum algorithm);

#endif

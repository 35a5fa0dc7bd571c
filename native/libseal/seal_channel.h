/* Messages of a PI channel: one SOCK_SEQPACKET datagram each way. The data and the protection
 * information (PI) lie in memory that the service made and shares with the holder; messages carry
 * offsets in it, never addresses. Integers are in the machine's byte order: both ends are on one machine. */
#ifndef SEAL_CHANNEL_H
#define SEAL_CHANNEL_H

#include <stdint.h>

#define SEAL_CHANNEL_ALIGN 4096u	   /* of data and PI in the shared memory, bytes */
#define SEAL_CHANNEL_LENGTH_MAX (4u << 20) /* data of one request, bytes */

enum seal_channel_op { SEAL_CHANNEL_READ = 1, SEAL_CHANNEL_WRITE = 2 };

enum {
	SEAL_CHANNEL_DSYNC = 1
}; /* a write returns once the device has it on stable media (RWF_DSYNC) */

/* Fields of a tuple, as a set: bit 1 << enum seal_pi_meaning of the engine. */
enum seal_field {
	SEAL_FIELD_TAG = 1,	 /* application tag */
	SEAL_FIELD_CHECKSUM = 2, /* guard */
	SEAL_FIELD_REFTAG = 4,	 /* reference tag */
};

/* Who checks, as a set. Only one of them finds an error: struct seal_channel_error.checker. */
enum seal_checker {
	SEAL_BY_CLIENT = 1,  /* libseal, in the holder */
	SEAL_BY_SERVICE = 2, /* the service, before a write and after a read */
	SEAL_BY_DEVICE = 4,  /* host adapter and drive */
};

struct seal_channel_request {
	uint64_t cookie; /* returned in the answer */
	uint16_t op;
	uint16_t flags;
	uint16_t
		provided; /* fields of a write that the caller's PI has; the others are generated */
	uint16_t verify;  /* fields to check */
	uint16_t checkers;
	uint16_t tag; /* generated, and expected where SEAL_FIELD_TAG is verified */
	uint32_t reserved;
	uint64_t offset, length; /* of the file, bytes: multiples of the interval */
	uint64_t reftag;	 /* of the first interval, as the application counts */
	uint64_t data, pi;	 /* offsets in the shared memory */
};

/* Which interval was wrong, and how. `status` 0 in the answer: none. */
struct seal_channel_error {
	uint32_t checker; /* enum seal_checker: who found it */
	uint32_t field;	  /* enum seal_field; 0: not known, see `located` */
	uint32_t located; /* 1: this interval; 0: somewhere in the request */
	uint32_t index;	  /* of the interval in the request */
	uint64_t offset;  /* of the file */
	uint64_t sector;  /* of the block device, in units of 512 bytes */
	uint64_t expected, found;
};

struct seal_channel_answer {
	uint64_t cookie;
	int32_t status; /* 0 or -errno: ESTALE (sealed no more), EILSEQ (see `error`), EBUSY (the range
			   is in the page cache and mapped), EINVAL, EIO ... */
	uint32_t reserved;
	struct seal_channel_error error;
};

#endif

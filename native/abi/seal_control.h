/* What libseal and the service exchange over the control socket: one datagram is one of these, in the
 * host's byte order. sealsvc/protocol/fixed.py has the same layouts; tests/ring/test_fixed_messages.py
 * compares them. The service takes JSON as well (docs/protocol.md): its first byte is no 's'. */
#ifndef SEAL_CONTROL_H
#define SEAL_CONTROL_H

#include <stdint.h>

#define SEAL_CONTROL_MAGIC UINT32_C(0x6c616573) /* "seal" on a little-endian machine */
#define SEAL_CONTROL_VERSION 1
#define SEAL_CONTROL_ID 24 /* hex digits of a seal's id; no NUL */
#define SEAL_CONTROL_FILES 256
#define SEAL_CONTROL_FACTS 6

enum seal_control_op {
	SEAL_CONTROL_ATTACH = 1,
	SEAL_CONTROL_REGISTER = 2,
	SEAL_CONTROL_RETURN = 3,
	SEAL_CONTROL_PI_CHANNEL = 4,
};

/* Of requests and answers. `request` is chosen by the client; an answer has that of its request, and
 * 0 when nothing of this client is looked at. */
struct seal_control_head {
	uint32_t magic;
	uint16_t version, op;
	uint64_t request;
};

struct seal_control_attach {
	struct seal_control_head head;
	uint32_t slots, commands, events, data;
	uint64_t secret; /* 0: a new ring; otherwise of the one that is there */
	uint32_t ring;
	uint32_t reserved;
};

/* A tag of UTF-8 follows, without NUL. Numbers are those of seal.h, 0 for the service's default. */
struct seal_control_register {
	struct seal_control_head head;
	uint64_t offset, length; /* length 0: to the end of the file */
	uint64_t grace;		 /* ns */
	uint32_t ring;
	uint32_t iomode, kind, conflict, fence;
	uint32_t prepare;
};

struct seal_control_return {
	struct seal_control_head head;
	char seal[SEAL_CONTROL_ID];
};

/* The name of a profile follows, without NUL; none: whatever the device keeps. */
struct seal_control_pi_channel {
	struct seal_control_head head;
	char seal[SEAL_CONTROL_ID];
	uint64_t bytes; /* of data and PI; 0: the service's default */
	uint32_t ring;	/* 1: requests are commands of the registration's ring */
	uint32_t reserved;
};

/* Of every answer. With an error other than 0 its text follows, UTF-8 without NUL, and nothing else. */
struct seal_control_answer {
	struct seal_control_head head;
	int32_t error; /* errno */
	uint32_t reserved;
};

/* Four descriptors come with it: memory, table, kick, bell. */
struct seal_control_attached {
	struct seal_control_answer answer;
	uint64_t secret;
	uint32_t ring;
	uint32_t reserved;
	char files[SEAL_CONTROL_FILES][SEAL_CONTROL_ID]; /* registrations that live; zeroes: none */
};

struct seal_control_registered {
	struct seal_control_answer answer;
	uint32_t file;
	uint32_t reserved;
	char seal[SEAL_CONTROL_ID];
};

/* Two descriptors come with it: the channel's socket and its memory. */
struct seal_control_pi_opened {
	struct seal_control_answer answer;
	uint32_t facts[SEAL_CONTROL_FACTS]; /* struct seal_pi_facts */
};

#endif

/* The ring: what a client and the keeper share, byte by byte. libseal speaks it; a program that does
 * not want libseal may.
 *
 * One memfd holds a mailbox, a ring of commands (client to keeper), a ring of events (keeper to client)
 * and a data area. There are no pointers in it: everything is an offset from its start. Positions
 * (`head`, `tail`) count bytes or events, modulo the largest multiple of the ring's size up to 2^32; the
 * place in a ring is the position modulo its size (seal_ring_geometry.h). The size of the commands is a
 * multiple of SEAL_RING_ALIGN, the number of events is any: neither need be a power of two.
 *
 * Commands. The client writes an entry whole, then moves `command_head` (release). The keeper copies
 * each entry once, moves `command_tail` when it has, and completes it in place: the results, then
 * `done` (release). Completions may come in any order. The client may write over an entry once it and
 * all before it are done, which it notes in `reaped`; that and the head are all that it needs to go on
 * after a crash. An entry never crosses the end of the ring: a SEAL_CMD_PAD entry fills what is left.
 *
 * Doorbells. Who sleeps says so: `kick_wanted` is set by the keeper, `bell_wanted` by the client, each
 * before a last look at the other's head (sequentially consistent). Who moves a head looks at the flag
 * after it (sequentially consistent) and rings only when it is set. So no doorbell is lost, and none is
 * rung for somebody who is awake.
 *
 * A ring that breaks these rules is flagged SEAL_RING_BROKEN and looked at no more.
 */
#ifndef SEAL_RING_H
#define SEAL_RING_H

#include <stdint.h>

#include "seal_channel.h"
#include "seal_table.h"

#define SEAL_RING_MAGIC UINT64_C(0x31474e49524c4153) /* "SALRING1" */
#define SEAL_RING_VERSION 1
#define SEAL_RING_ALIGN 16	/* entries begin at multiples of this */
#define SEAL_RING_MAX_ENTRY 160 /* bytes of the longest entry that is not a PAD */

/* What a service can do beyond version 1. */
#define SEAL_FEATURE_OUT_OF_ORDER 1u
#define SEAL_FEATURE_EXTENTS 2u
#define SEAL_FEATURE_COPY 4u
#define SEAL_FEATURE_PI 8u /* SEAL_CMD_PI_WRITE, SEAL_CMD_PI_READ */

enum seal_ring_flag {
	SEAL_RING_BROKEN = 1, /* the client broke the rules */
	SEAL_RING_MISSED = 2, /* events did not fit: the table tells what is true */
	SEAL_RING_GONE = 4,   /* the service has let go of it */
};

struct seal_mailbox {
	/* Written once, by the keeper. */
	uint64_t magic;
	uint32_t version, features;
	uint32_t command_offset, command_size; /* bytes */
	uint32_t event_offset, event_count;
	uint32_t data_offset, data_size; /* bytes */
	uint32_t slots, ring;
	uint8_t reserved0[16];
	/* Written by the client. */
	uint32_t command_head;
	uint32_t reaped;
	uint32_t event_tail;
	uint32_t bell_wanted;
	uint8_t reserved1[48];
	/* Written by the keeper; `flags` and `kick_wanted` by both. */
	uint32_t command_tail;
	uint32_t event_head;
	uint32_t kick_wanted;
	uint32_t flags;
	uint8_t reserved2[48];
};

enum seal_opcode {
	SEAL_CMD_PAD,
	SEAL_CMD_NOP,
	SEAL_CMD_GRANT,	    /* in: file, iomode, offset, length, ttl, cookie; out: slot, word */
	SEAL_CMD_RETURN,    /* slot, word */
	SEAL_CMD_RENEW,	    /* slot, word, ttl; out: word */
	SEAL_CMD_INQUIRE,   /* slot; out: word */
	SEAL_CMD_MAPPED,    /* slot, word, offset: the address (0: look for it); out: word */
	SEAL_CMD_DOWNGRADE, /* slot, word; out: word */
	SEAL_CMD_SHRINK,    /* slot, word, offset, length: the part that is returned; out: word */
	SEAL_CMD_EXTENTS,   /* file, offset, length, data, data_length; out: count of extents */
	SEAL_CMD_PROGRESS,  /* slot, word: the recall is being seen to; out: word */
	SEAL_CMD_PI_WRITE = 32, /* struct seal_pi_command: file, request; out: answer */
	SEAL_CMD_PI_READ,	/* the same */
	/* With SEAL_FEATURE_COPY. file, offset, length: the source range; slot, cookie: the file that it
	 * is copied to, and the offset there; out: word: bytes that were copied, and flushed. */
	SEAL_CMD_COPY_RANGE = 48,
};

/* `size` is in bytes, a multiple of SEAL_RING_ALIGN, and for all but PAD at least that of this
 * structure. `status` is 0 or -errno. */
struct seal_command {
	uint32_t size;
	uint16_t op, flags;
	uint64_t id; /* the client's */
	uint32_t done;
	int32_t status;
	uint32_t slot, file;
	uint64_t word;
	uint64_t offset, length;
	uint64_t ttl; /* ns; 0: none */
	uint64_t cookie;
	uint32_t iomode;
	uint32_t data, data_length; /* bytes, from the start of the data area */
	uint32_t count;
	uint64_t reserved;
};

/* The entry of SEAL_CMD_PI_WRITE and SEAL_CMD_PI_READ: a request to the PI channel of registration `file`,
 * whose memory has the data and the PI (seal_channel.h). The op of the command takes the place of that of the
 * request. The channel's answer is written over the request; its status is that of the command as well.
 * ESTALE: the registration has no channel, or its channel has ended; EAGAIN: 64 are in flight. A ring of less
 * than 320 bytes may have no room for it. */
struct seal_pi_command {
	struct seal_command command;
	union {
		struct seal_channel_request request;
		struct seal_channel_answer answer;
	};
};

/* In the data area. Bytes; `physical` is an offset on the file system's device, `flags` are
 * FIEMAP_EXTENT_*. */
struct seal_map_extent {
	uint64_t logical, physical, length, flags;
};

enum seal_event_kind {
	SEAL_EVENT_RECALL = 1, /* give it back before the deadline: at least offset, length of it */
	SEAL_EVENT_DEADLINE,   /* the deadline, or what is wanted, has changed */
	SEAL_EVENT_LOST,       /* the extent map is not the sealed one: do not use it any more */
	SEAL_EVENT_OVER,       /* revoked, expired, or returned on the holder's behalf */
	SEAL_EVENT_LAPSED,     /* its ttl has passed: it stays until somebody conflicts */
	SEAL_EVENT_FILE,       /* the registration itself: `word` tells its state */
	SEAL_EVENT_ANY,	       /* give back `length` seals of your choice */
};

struct seal_ring_event {
	uint32_t kind, slot; /* slot: UINT32_MAX for FILE and ANY */
	uint32_t file, sequence;
	uint64_t word, cookie;
	uint64_t offset, length;
	uint64_t deadline; /* ns of CLOCK_BOOTTIME */
	uint64_t id;
};

#ifndef __cplusplus
_Static_assert(sizeof(struct seal_mailbox) == 192, "three cache lines");
_Static_assert(sizeof(struct seal_pi_command) == SEAL_RING_MAX_ENTRY, "the longest command");
_Static_assert(sizeof(struct seal_command) % SEAL_RING_ALIGN == 0, "entries stay aligned");
_Static_assert(sizeof(struct seal_pi_command) % SEAL_RING_ALIGN == 0, "entries stay aligned");
_Static_assert(sizeof(struct seal_ring_event) == 64, "one cache line");
#endif

#endif

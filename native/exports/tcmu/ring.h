/* The ring that TCMU shares with a handler (Documentation/target/tcmu-design.rst): a mailbox, a ring of
 * command entries, and data. No system call is made here: the region may be the kernel's, or a model of it in
 * ordinary memory. Nothing in it is trusted: an offset that leads out of it ends the ring with -EPROTO.
 *
 * The entries from cmd_tail to cmd_head are always exactly the commands without an answer, whatever happens to
 * this process, also when answers are given out of order: see struct tcmu_note. One caller at a time. */
#ifndef SEALSVC_TCMU_RING_H
#define SEALSVC_TCMU_RING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "abi/seal_ring_geometry.h"

#define TCMU_COMMANDS 128 /* taken from the ring at once */
#define TCMU_IOVS 256	  /* of one command */
#define TCMU_CDB 16
#define TCMU_SENSE 96

enum tcmu_state { TCMU_FREE, TCMU_TAKEN, TCMU_DONE };

struct tcmu_command {
	uint8_t cdb[TCMU_CDB]; /* zeros behind a shorter one */
	uint8_t bidi;	       /* has a second data direction: to be refused */
	uint8_t crowded;       /* more than TCMU_IOVS parts: none is told, to be refused */
	uint16_t id;
	unsigned iov_count;
	uint64_t bytes;		     /* of all parts */
	struct iovec iov[TCMU_IOVS]; /* in the data area, checked */
	/* The answer. */
	uint8_t status;	   /* a SCSI status code */
	uint64_t read_len; /* fewer bytes than asked for were read; 0: all */
	uint8_t sense[TCMU_SENSE];
	enum tcmu_state state;
};

/* A note on memory that outlives this process (a file in /run). The answer to a command goes to the slot at
 * the tail of the ring, so out of order it overwrites another command's request, which first moves to the slot
 * of the one that is done. The note is written before these steps, so that the next process can finish them. */
struct tcmu_note {
	uint32_t armed; /* everything below is valid */
	uint32_t tail, free_slot;
	uint16_t done_id, moved_id;
	uint8_t status;
	uint64_t read_len;
	uint8_t sense[TCMU_SENSE];
	uint8_t cdb[TCMU_CDB];
	uint32_t iov_count;
	uint64_t iov[TCMU_IOVS][2]; /* offset, length */
	/* COMPARE AND WRITE whose comparison succeeded: not to be compared again (blocks.c). */
	uint32_t write_state;
	uint32_t write_id;
};

struct tcmu_slot {
	uint32_t at, length;	      /* in the ring */
	struct tcmu_command *command; /* NULL: nothing to answer */
};

struct tcmu_ring {
	char *base;
	size_t size;
	const struct tcmu_layout *layout;
	struct tcmu_note *note;
	struct ring_geometry geometry;
	uint32_t ring_offset, data_offset;
	uint32_t next, tail;
	unsigned flags;		     /* of the mailbox */
	unsigned first, count, done; /* slots in use; how many of their commands are done */
	unsigned resets;	     /* task management entries that were seen */
	unsigned unknown;	     /* entries of no known kind */
	struct tcmu_slot slots[2 * TCMU_COMMANDS];
	struct tcmu_command commands[TCMU_COMMANDS];
};

/* `note`: NULL to answer in the ring's order alone. Versions 1 (the first, and our model's) and 2 (the
 * kernel's) are known; -EPROTONOSUPPORT for others, -EPROTO for a region that cannot be one. */
int tcmu_ring_open(struct tcmu_ring *ring, void *base, size_t size, struct tcmu_note *note);

/* The next command: 1; 0 when there is none, or no room for it until others are done; -EPROTO. */
int tcmu_ring_next(struct tcmu_ring *ring, struct tcmu_command **command);

/* The command has its answer. 1: the kernel is to be told, by four bytes written to its file. */
int tcmu_ring_done(struct tcmu_ring *ring, struct tcmu_command *command);

/* Before the first tcmu_ring_next: whether the command `id` waits in the ring, and its operation code is
 * `opcode`. */
int tcmu_ring_has(const struct tcmu_ring *ring, uint16_t id, uint8_t opcode);

/* Whether anything waits in the ring or is being served. */
int tcmu_ring_is_idle(const struct tcmu_ring *ring);

#endif

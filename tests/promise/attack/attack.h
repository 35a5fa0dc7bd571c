/* The attacking side of the promise fuzzer: operations as records, and those who carry them out.
 *
 * An operation is a record of fixed size that says everything about it. The record of a worker's n-th
 * operation follows from (seed, worker, n) and the layout of the epoch alone (generate.c), so that a run
 * can be repeated from its seed, and any part of it from a list of records. */
#ifndef PROMISE_ATTACK_H
#define PROMISE_ATTACK_H

#include <stdint.h>

#define FILES 10 /* of one epoch; sealed or not, see struct target */
#define FILE_BYTES 1048576
#define BLOCK 4096
#define WORKERS 4
#define EPOCH_OPS 65536 /* of one worker, at most */
#define BUFFER 262144
#define PROMISE_MAGIC UINT64_C(0x5ea15ea15ea15ea1)

/* Which workers may do it, and where. */
#define ROOT 1 /* privileged workers only */
#define XFS 2  /* this file system only */
#define EXT4 4
#define SLOW 8	/* takes milliseconds: a longer limit before the worker is killed */
#define CORE 16 /* where core dumps are written into the current directory */
/* Known gaps of shared seals (policy.accept_risks). Where a seal was granted with such a risk, these
 * operations go to exclusively sealed files and to neighbours alone. */
#define RISK_SWAPEXT 32
#define RISK_MOVE_EXT 64
#define RISK_OVERLAY 128
#define RISK_LOOP 256
#define RISK_SWAP_BOOT 512
#define RISK_INODE_FLAGS 1024
#define RISKS                                                                                      \
	(RISK_SWAPEXT | RISK_MOVE_EXT | RISK_OVERLAY | RISK_LOOP | RISK_SWAP_BOOT |                \
	 RISK_INODE_FLAGS)

/* name, weight, flags. The order is part of the record's format: append only. */
#define KINDS(KIND)                                                                                \
	KIND(read, 40, 0)                                                                          \
	KIND(write, 90, 0)                                                                         \
	KIND(write_flags, 50, 0)                                                                   \
	KIND(truncate, 60, 0)                                                                      \
	KIND(fallocate, 120, 0)                                                                    \
	KIND(madvise, 60, 0)                                                                       \
	KIND(process_madvise, 10, 0)                                                               \
	KIND(store, 60, 0)                                                                         \
	KIND(splice, 30, 0)                                                                        \
	KIND(copy_range, 40, 0)                                                                    \
	KIND(clone, 80, 0)                                                                         \
	KIND(dedupe, 20, 0)                                                                        \
	KIND(exchange, 20, 0)                                                                      \
	KIND(xfs_space, 30, XFS)                                                                   \
	KIND(swapext, 5, XFS | RISK_SWAPEXT)                                                       \
	KIND(move_ext, 20, EXT4 | RISK_MOVE_EXT)                                                   \
	KIND(swap_boot, 5, EXT4 | ROOT | RISK_SWAP_BOOT)                                           \
	KIND(attributes, 30, RISK_INODE_FLAGS)                                                     \
	KIND(known_ioctl, 10, 0)                                                                   \
	KIND(trim, 2, ROOT | SLOW)                                                                 \
	KIND(open_flags, 50, 0)                                                                    \
	KIND(openat2, 20, 0)                                                                       \
	KIND(openat2_shared, 2, SLOW)                                                              \
	KIND(sync, 10, 0)                                                                          \
	KIND(names, 10, 0)                                                                         \
	KIND(aio, 40, 0)                                                                           \
	KIND(uring, 100, 0)                                                                        \
	KIND(uring_linked, 10, 0)                                                                  \
	KIND(uring_poll, 5, SLOW)                                                                  \
	KIND(uring_worker, 4, SLOW)                                                                \
	KIND(compat, 60, 0)                                                                        \
	KIND(thread, 6, SLOW)                                                                      \
	KIND(child, 6, SLOW)                                                                       \
	KIND(core_dump, 1, CORE | SLOW)                                                            \
	KIND(overlay, 1, RISK_OVERLAY | SLOW)                                                      \
	KIND(loop, 1, ROOT | RISK_LOOP | SLOW)

enum kind {
#define KIND(name, weight, flags) KIND_##name,
	KINDS(KIND)
#undef KIND
		KIND_COUNT
};

/* How a file is come by. */
enum how {
	HOW_HELD,      /* a descriptor that was opened before the seals were granted */
	HOW_HELD_READ, /* the same, read only */
	HOW_PATH,
	HOW_LINK, /* a hard link */
	HOW_PROC, /* /proc/self/fd */
	HOW_DIRECT,
	HOW_COUNT
};

struct op {
	uint16_t kind, flags; /* flags: by kind */
	uint8_t file, other, how, sub;
	uint32_t high; /* goes into the upper halves of arguments that are int to the kernel */
	uint32_t spare;
	uint64_t offset, length, argument, second;
};

/* One file of the epoch; what the runner seals of it. */
struct target {
	uint64_t start, end;
	uint32_t sealed, exclusive;
};

/* How operations ended, counted by kind. */
enum ending { ENDED_OK, ENDED_REFUSED, ENDED_FAILED, ENDED_KILLED, ENDINGS };

/* Of one worker. Written by it, read by the runner and the supervisor. */
struct slot {
	uint64_t next;	     /* the operation that comes next, or is under way */
	uint64_t started_us; /* 0: none is under way */
	uint32_t opened;     /* the epoch whose files it has open */
	uint32_t pid;
	uint64_t counts[KIND_COUNT][ENDINGS];
	uint64_t began_us[EPOCH_OPS]; /* of this epoch's operations, for the order of a replay */
};

/* Shared memory between the runner (Python), the supervisor and the workers. */
struct control {
	uint64_t magic;		    /* PROMISE_MAGIC, as long as no operation went astray */
	uint64_t seed, epoch_first; /* number of the epoch's first operation */
	uint64_t until;		    /* operations below this number may be carried out */
	uint32_t epoch, workers;
	uint32_t stop, fs;   /* fs: XFS or EXT4 */
	uint32_t risks;	     /* RISK_* that seals were granted with */
	uint32_t privileged; /* bit mask of the workers that stay root */
	uint64_t without;    /* bit mask of kinds that are left out */
	uint64_t turn;	     /* a replay in order: the record whose turn it is */
	char directory[256]; /* of the epoch's files: f0 ..., their links h0 ... */
	struct target targets[FILES];
	struct slot slots[WORKERS];
};

struct uring {
	int fd;
	unsigned *sq_tail, *sq_array, *cq_head, *cq_tail, *sq_flags;
	unsigned sq_mask, cq_mask, sqpoll;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	void *rings, *cq_ring;
	unsigned long rings_size, cq_size, sqes_size;
};

struct attacker {
	struct control *control;
	struct slot *slot;
	unsigned worker;
	int directory;
	int held[FILES], held_read[FILES];
	void *mappings[FILES];
	char *buffer; /* below 4 GiB, for calls of the 32-bit interface */
	struct uring ring;
	unsigned long aio;
};

/* generate.c */
extern const char *const kind_names[KIND_COUNT];
extern const unsigned kind_flags[KIND_COUNT];
uint64_t prng_next(uint64_t *state);
void generate(const struct control *control, unsigned worker, uint64_t number, struct op *out);
/* Like /proc and the replay list write it: hexadecimal, then what it means. */
void op_print(const struct op *op, unsigned worker);
int op_parse(const char *line, unsigned *worker, struct op *out);

/* target.c: files by path, link, descriptor */
int target_open(struct attacker *a, const struct op *op, int flags);
void target_close(struct attacker *a, const struct op *op, int fd);
const char *target_path(const struct op *op, char path[32]);
void *target_map(struct attacker *a, unsigned file);
void attacker_open(struct attacker *a);
void attacker_close(struct attacker *a);

/* Each carries out one operation: 0 or more, or -errno. */
#define KIND(name, weight, flags) long do_##name(struct attacker *a, const struct op *op);
KINDS(KIND)
#undef KIND

/* uring.c */
int uring_open(struct uring *ring, unsigned flags);
void uring_close(struct uring *ring);

#endif

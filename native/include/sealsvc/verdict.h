/* What an operation is, and whether it would change a sealed extent map. Pure: no I/O, no state. */
#ifndef SEALSVC_VERDICT_H
#define SEALSVC_VERDICT_H

#include <stdint.h>

enum seal_op {
	/* Leave the map of a sealed range as it is: it is allocated, written and unshared. */
	SEAL_OP_READ,
	SEAL_OP_MMAP,
	SEAL_OP_WRITE,	  /* in place inside the range; may extend the file beyond it */
	SEAL_OP_ALLOCATE, /* fallocate(0), KEEP_SIZE, RESVSP */
	SEAL_OP_UNSHARE,
	/* Change the map of the bytes they name. */
	SEAL_OP_WRITE_ATOMIC, /* RWF_ATOMIC: XFS may write out of place (6.16) */
	SEAL_OP_PUNCH,
	SEAL_OP_ZERO, /* XFS replaces the blocks */
	SEAL_OP_WRITE_ZEROES,
	SEAL_OP_REMOVE, /* MADV_REMOVE */
	SEAL_OP_CLONE,	/* sharing belongs to the map: source and destination alike */
	SEAL_OP_DEDUPE,
	SEAL_OP_COPY, /* copy_file_range: a clone where the file system can */
	SEAL_OP_EXCHANGE,
	/* Change everything from their offset on. */
	SEAL_OP_TRUNCATE, /* offset is the new size */
	SEAL_OP_COLLAPSE,
	SEAL_OP_INSERT,
	/* Opens. */
	SEAL_OP_OPEN,
	SEAL_OP_OPEN_TRUNC,
	SEAL_OP_OPEN_HIDDEN, /* flags cannot be known: may truncate */
	SEAL_OP_EXEC,
	/* The kind cannot be known (io_uring, AIO, an unknown call): judged by its range alone. */
	SEAL_OP_HIDDEN,
	SEAL_OP_COUNT
};

/* A stable name for messages and JSON, such as "fallocate-punch-hole". */
const char *seal_op_name(int op);

/* Bytes; length 0 means to the end of the file. For TRUNCATE offset is the new size. */
struct seal_operation {
	int32_t op;
	int32_t tid;
	uint64_t offset, length;
	int64_t syscall;   /* its number, -1 when it could not be seen */
	uint64_t argument; /* the one that tells the kind: mode, ioctl command, flags, advice */
};

enum seal_policy {
	SEAL_POLICY_ARMING, /* a grant is in progress: hold conflicts, tell nobody yet */
	SEAL_POLICY_WAIT,   /* hold conflicts and report them */
	SEAL_POLICY_REFUSE, /* deny conflicts with ETXTBSY and report them */
	SEAL_POLICY_BUSY,   /* a recall's deadline has passed: deny conflicts with EBUSY */
	SEAL_POLICY_WATCH,  /* a registration: whoever is behind `watch` judges (sealsvc/rings.h) */
};

struct seal_guard {
	uint64_t id;
	uint64_t start, end; /* bytes, whole blocks */
	int32_t holder;	     /* tgid; 0: none */
	uint32_t exclusive;
	uint32_t policy; /* enum seal_policy */
	uint64_t watch;	 /* names a registration; 0: none */
};

struct seal_traits {
	uint32_t block_size; /* bytes */
	uint32_t reflink;    /* the file system may turn copies into clones */
};

/* 1 when `operation` would change what `guard` promises. `by_holder`: its caller is the holder. */
int seal_conflicts(const struct seal_operation *operation, const struct seal_guard *guard,
		   const struct seal_traits *traits, int by_holder);

/* 1 when the operation may change some extent map, sealed or not. */
int seal_changes_maps(int op);

#endif

/* Whether an operation would change a sealed extent map, and what its caller gets. Pure: no I/O, no
 * state. The inline functions evaluate the rule book (sealsvc/rules.h, generated from
 * sealsvc/core/rules.py); the gate, the rings and the BPF programs use them alike. */
#ifndef SEALSVC_VERDICT_H
#define SEALSVC_VERDICT_H

#include <stdint.h>

#include "sealsvc/rules.h"

#define SEAL_INLINE static inline __attribute__((always_inline, unused))

/* A stable name for messages and JSON, such as "fallocate-punch-hole". */
const char *seal_op_name(int op);

/* Bytes; length 0 means to the end of the file. For TRUNCATE offset is the new size. */
struct seal_operation {
	int32_t op;
	int32_t tid;
	uint64_t offset, length;
	int64_t syscall;   /* its number, -1 when its registers were not looked at */
	uint64_t argument; /* the one that tells the kind: mode, ioctl command, flags */
};

struct seal_guard {
	uint64_t id;
	uint64_t start, end; /* bytes, whole blocks */
	int32_t holder;	     /* tgid; 0: none */
	uint32_t exclusive;
	uint32_t policy; /* enum seal_policy */
	/* 1: bpf stands behind this guard. It judges truncation inside an open by inode_setattr, so that
	 * an open whose flags are not known is let through here. */
	uint32_t backed;
	uint64_t watch; /* names a registration; 0: none */
};

struct seal_traits {
	uint32_t block_size; /* bytes */
	uint32_t reflink;    /* the file system shares blocks between files */
	uint32_t atomic;     /* it may write atomically: set by the gate, from statx(2) */
	uint32_t unused;
};

SEAL_INLINE uint32_t seal_reach(uint32_t op, uint32_t traits)
{
	uint64_t bit = UINT64_C(1) << (op & 63);

	if (op >= SEAL_OP_COUNT)
		return SEAL_REACH_WHOLE;
	if ((bit & SEAL_OPS_BACKED) && (traits & SEAL_TRAIT_BACKED))
		return SEAL_REACH_NONE;
	if ((bit & SEAL_OPS_ATOMIC) && !(traits & SEAL_TRAIT_ATOMIC))
		return SEAL_REACH_NONE;
	if (bit & (traits & SEAL_TRAIT_REFLINK ? SEAL_OPS_WHOLE_SHARED : SEAL_OPS_WHOLE))
		return SEAL_REACH_WHOLE;
	if (bit & (traits & SEAL_TRAIT_REFLINK ? SEAL_OPS_TO_END_SHARED : SEAL_OPS_TO_END))
		return SEAL_REACH_TO_END;
	if (bit & (traits & SEAL_TRAIT_REFLINK ? SEAL_OPS_RANGE_SHARED : SEAL_OPS_RANGE))
		return SEAL_REACH_RANGE;
	return SEAL_REACH_NONE;
}

/* 1 when the operation opens the file. */
SEAL_INLINE int seal_opens(uint32_t op)
{
	return op < SEAL_OP_COUNT && (SEAL_OPS_OPENS >> (op & 63)) & 1;
}

/* 1 when an operation on `length` bytes at `offset` would change what a guard of [start, end)
 * promises. `traits`: SEAL_TRAIT_*. */
SEAL_INLINE int seal_meets(uint32_t op, uint64_t offset, uint64_t length, uint64_t start,
			   uint64_t end, uint32_t traits)
{
	if (seal_opens(op) && (traits & SEAL_TRAIT_EXCLUSIVE) && !(traits & SEAL_TRAIT_HOLDER))
		return 1;
	switch (seal_reach(op, traits)) {
	case SEAL_REACH_NONE:
		return 0;
	case SEAL_REACH_WHOLE:
		return start < end;
	case SEAL_REACH_TO_END:
		return offset < end;
	}
	if (length == 0 || offset + length < offset)
		return offset < end;
	return offset < end && start < offset + length;
}

/* Every guard that seal_meets() by its range begins at or before `last` and ends behind `from`; so do some that it
 * does not. 0: there is none. */
SEAL_INLINE int seal_span(uint32_t op, uint64_t offset, uint64_t length, uint32_t traits,
			  uint64_t *from, uint64_t *last)
{
	uint32_t reach = seal_reach(op, traits & ~(uint32_t)SEAL_TRAIT_BACKED);

	*from = reach == SEAL_REACH_WHOLE ? 0 : offset;
	*last = UINT64_MAX;
	if (reach == SEAL_REACH_RANGE && length && offset + length >= offset)
		*last = offset + length - 1;
	return reach != SEAL_REACH_NONE;
}

/* The errno that a conflict gets at once from a mechanism that can hold callers; 0: it waits. */
SEAL_INLINE int seal_policy_errno(uint32_t policy, int by_holder)
{
	if (policy == SEAL_POLICY_REFUSE)
		return SEAL_REFUSE_ERRNO;
	if (policy == SEAL_POLICY_BUSY)
		return SEAL_BUSY_ERRNO;
	return by_holder && policy != SEAL_POLICY_ARMING ? SEAL_HOLDER_ERRNO : 0;
}

/* The errno that is told when two guards give one each (0: none). */
SEAL_INLINE int seal_prevailing_errno(int one, int other)
{
	return one == SEAL_FIRST_ERRNO || !other ? one : other;
}

/* 1 when the operation may change some extent map, sealed or not. */
SEAL_INLINE int seal_changes(uint32_t op, uint32_t traits)
{
	uint64_t bit = UINT64_C(1) << (op & 63);

	if (op >= SEAL_OP_COUNT)
		return 1;
	if ((bit & SEAL_OPS_ATOMIC) && !(traits & SEAL_TRAIT_ATOMIC))
		return 0;
	return (bit & SEAL_OPS_CHANGE_MAPS) != 0;
}

/* The same of the structures above. `by_holder`: the caller is the guard's holder. */
int seal_conflicts(const struct seal_operation *operation, const struct seal_guard *guard,
		   const struct seal_traits *traits, int by_holder);
int seal_operation_span(const struct seal_operation *operation, const struct seal_traits *traits,
			uint64_t *from, uint64_t *last);
int seal_changes_maps(int op, const struct seal_traits *traits);

/* For the tests, which compare them with rules.py. */
int seal_rule_meets(uint32_t op, uint64_t offset, uint64_t length, uint64_t start, uint64_t end,
		    uint32_t traits);
int seal_rule_errno(uint32_t policy, int by_holder);
int seal_rule_prevailing(int one, int other);

#endif

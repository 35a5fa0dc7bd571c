#include "sealsvc/verdict.h"

static const char *const names[SEAL_OP_COUNT] = {
	[SEAL_OP_READ] = "read",
	[SEAL_OP_MMAP] = "mmap",
	[SEAL_OP_WRITE] = "write",
	[SEAL_OP_ALLOCATE] = "fallocate-allocate",
	[SEAL_OP_UNSHARE] = "fallocate-unshare-range",
	[SEAL_OP_WRITE_ATOMIC] = "write-atomic",
	[SEAL_OP_PUNCH] = "fallocate-punch-hole",
	[SEAL_OP_ZERO] = "fallocate-zero-range",
	[SEAL_OP_WRITE_ZEROES] = "fallocate-write-zeroes",
	[SEAL_OP_REMOVE] = "madvise-remove",
	[SEAL_OP_CLONE] = "clone",
	[SEAL_OP_DEDUPE] = "dedupe",
	[SEAL_OP_COPY] = "copy-file-range",
	[SEAL_OP_EXCHANGE] = "exchange-range",
	[SEAL_OP_TRUNCATE] = "truncate",
	[SEAL_OP_COLLAPSE] = "fallocate-collapse-range",
	[SEAL_OP_INSERT] = "fallocate-insert-range",
	[SEAL_OP_OPEN] = "open",
	[SEAL_OP_OPEN_TRUNC] = "open-truncate",
	[SEAL_OP_OPEN_HIDDEN] = "open-hidden",
	[SEAL_OP_EXEC] = "execve",
	[SEAL_OP_HIDDEN] = "hidden",
};

const char *seal_op_name(int op)
{
	return op >= 0 && op < SEAL_OP_COUNT ? names[op] : "hidden";
}

static int overlaps(const struct seal_operation *o, const struct seal_guard *g)
{
	uint64_t end = o->offset + o->length;

	if (o->length == 0 || end < o->offset)
		return o->offset < g->end;
	return o->offset < g->end && g->start < end;
}

/* An operation of unknown kind. It may be a truncate (the event then carries no length, or a page),
 * or move everything behind it (collapse, insert), which only whole blocks can. */
static int hidden_conflicts(const struct seal_operation *o, const struct seal_guard *g,
			    const struct seal_traits *t)
{
	uint64_t mask = (t->block_size ? t->block_size : 1) - 1;

	if (((o->offset | o->length) & mask) == 0)
		return o->offset < g->end;
	return overlaps(o, g);
}

int seal_conflicts(const struct seal_operation *o, const struct seal_guard *g,
		   const struct seal_traits *t, int by_holder)
{
	switch (o->op) {
	case SEAL_OP_READ:
	case SEAL_OP_MMAP:
	case SEAL_OP_WRITE:
	case SEAL_OP_ALLOCATE:
	case SEAL_OP_UNSHARE:
		return 0;
	case SEAL_OP_COPY:
		return t->reflink && overlaps(o, g);
	case SEAL_OP_TRUNCATE:
	case SEAL_OP_COLLAPSE:
	case SEAL_OP_INSERT:
		return o->offset < g->end;
	case SEAL_OP_OPEN:
	case SEAL_OP_EXEC:
		return g->exclusive && !by_holder;
	case SEAL_OP_OPEN_TRUNC:
		return g->end > 0;
	case SEAL_OP_OPEN_HIDDEN:
		return !by_holder || g->end > 0;
	case SEAL_OP_HIDDEN:
		return hidden_conflicts(o, g, t);
	default:
		return overlaps(o, g);
	}
}

int seal_changes_maps(int op)
{
	switch (op) {
	case SEAL_OP_READ:
	case SEAL_OP_MMAP:
	case SEAL_OP_WRITE:
	case SEAL_OP_ALLOCATE:
	case SEAL_OP_UNSHARE:
	case SEAL_OP_OPEN:
	case SEAL_OP_EXEC:
		return 0;
	default:
		return 1;
	}
}

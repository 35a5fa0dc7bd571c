/* The guards of one file: found by their ids, and by what an operation would change. */
#ifndef SEALSVC_GATE_GUARDS_H
#define SEALSVC_GATE_GUARDS_H

#include <stddef.h>
#include <stdint.h>

#include "base/interval.h"
#include "sealsvc/verdict.h"

struct guard {
	struct interval by_range, by_id;
	struct seal_guard is;
};

/* All zeros is the empty set. */
struct guards {
	struct interval *by_range, *by_id;
	size_t count, exclusive;
};

/* Adds a guard: 0; or replaces the one with its id, and stores that: 1; or -ENOMEM, and nothing has changed. */
int guards_put(struct guards *guards, const struct seal_guard *guard, struct seal_guard *replaced);
/* 0 or -ENOENT. */
int guards_take(struct guards *guards, uint64_t id);
void guards_clear(struct guards *guards);

/* All that the operation conflicts with are among these, and few others: seal_conflicts tells. NULL: no more. The
 * guard passed to the second is still in the set. */
const struct guard *guards_first(const struct guards *guards,
				 const struct seal_operation *operation,
				 const struct seal_traits *traits);
const struct guard *guards_next(const struct guards *guards, const struct guard *guard,
				const struct seal_operation *operation,
				const struct seal_traits *traits);

/* By their ids' order. NULL: no more. */
const struct guard *guards_list(const struct guards *guards, const struct guard *behind);

#endif

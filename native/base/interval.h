/* An ordered set of intervals that finds those which overlap a range: an AVL tree, ordered by their starts, in
 * which each node knows the highest end below it (Cormen et al., Introduction to Algorithms, 14.3). The nodes
 * belong to the caller: nothing is allocated here, and nothing fails. O(log n) for each step. */
#ifndef SEALSVC_BASE_INTERVAL_H
#define SEALSVC_BASE_INTERVAL_H

#include <stdint.h>

/* Bytes from `start` to before `end`. Fields below these are the tree's. */
struct interval {
	uint64_t start, end;
	uint64_t highest_end;
	struct interval *left, *right;
	int height;
};

/* `root` is NULL for the empty set. The node is in no set, and keeps its start and end while it is in one. Several
 * may have the same start, or be equal. */
void interval_insert(struct interval **root, struct interval *node);
/* The node is in this set. */
void interval_remove(struct interval **root, struct interval *node);

/* The first, in the order of starts, of those that begin at or before `last` and end behind `from`; NULL: there is
 * none. */
struct interval *interval_first(struct interval *root, uint64_t from, uint64_t last);
/* The next of them behind `node`, which is still in the set. Others may have come or gone meanwhile. */
struct interval *interval_next(struct interval *root, const struct interval *node, uint64_t from,
			       uint64_t last);
/* In the order of starts, whatever their ends: the first (`node` is NULL), or the next. NULL: there is none. */
struct interval *interval_after(struct interval *root, const struct interval *node);
/* One with exactly this start; NULL: there is none. */
struct interval *interval_at(struct interval *root, uint64_t start);

#endif

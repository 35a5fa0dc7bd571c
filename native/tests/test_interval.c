/* The interval tree against a list of the same intervals, and its own invariants, at random. */
#include <string.h>

#include "../base/interval.h"
#include "chance.h"
#include "check.h"

#define NODES 600
#define STEPS 60000

static struct interval node[NODES];
static uint8_t is_in[NODES];
static struct interval *root;

/* Few different numbers, so that much is equal, and now and then the ends of what there is. */
static uint64_t place(void)
{
	switch (chance(20)) {
	case 0:
		return 0;
	case 1:
		return UINT64_MAX - chance(2);
	}
	return chance(300);
}

static int is_before(const struct interval *one, const struct interval *other)
{
	return one->start != other->start ? one->start < other->start : one < other;
}

/* The subtree's height; `count` is raised by its size. */
static int check_balance(const struct interval *top, unsigned *count)
{
	uint64_t highest;
	int left, right;

	if (!top)
		return 0;
	left = check_balance(top->left, count);
	right = check_balance(top->right, count);
	CHECK(left - right >= -1 && left - right <= 1);
	CHECK(top->height == (left > right ? left : right) + 1);
	highest = top->end;
	if (top->left && top->left->highest_end > highest)
		highest = top->left->highest_end;
	if (top->right && top->right->highest_end > highest)
		highest = top->right->highest_end;
	CHECK(top->highest_end == highest);
	CHECK(!top->left || is_before(top->left, top));
	CHECK(!top->right || is_before(top, top->right));
	++*count;
	return top->height;
}

static void check_whole(void)
{
	const struct interval *at = NULL;
	unsigned count = 0, there = 0, listed = 0;

	check_balance(root, &count);
	for (unsigned i = 0; i < NODES; i++)
		there += is_in[i];
	for (at = interval_after(root, NULL); at; at = interval_after(root, at)) {
		CHECK(is_in[at - node]);
		listed++;
	}
	CHECK(count == there && listed == there);
}

/* All that overlap, each once and in order. */
static void check_query(uint64_t from, uint64_t last)
{
	const struct interval *before = NULL;
	uint8_t seen[NODES] = {0};

	for (struct interval *at = interval_first(root, from, last); at;
	     at = interval_next(root, at, from, last)) {
		CHECK(!before || is_before(before, at));
		CHECK(is_in[at - node] && !seen[at - node]);
		seen[at - node] = 1;
		before = at;
	}
	for (unsigned i = 0; i < NODES; i++)
		CHECK(seen[i] == (is_in[i] && node[i].start <= last && node[i].end > from));
}

static void step(unsigned most)
{
	unsigned i = (unsigned)chance(most);
	struct interval *found;

	if (is_in[i]) {
		interval_remove(&root, &node[i]);
		is_in[i] = 0;
	} else {
		memset(&node[i], 0xa5, sizeof(node[i])); /* what was there before means nothing */
		node[i].start = place();
		node[i].end = chance(4) ? node[i].start + chance(40) : place();
		interval_insert(&root, &node[i]);
		is_in[i] = 1;
		CHECK((found = interval_at(root, node[i].start)) && found->start == node[i].start);
	}
}

int main(void)
{
	unsigned depth = 0;

	CHECK(!interval_first(NULL, 0, UINT64_MAX) && !interval_after(NULL, NULL));
	CHECK(!interval_at(NULL, 0));
	for (unsigned i = 0; i < STEPS; i++) {
		/* Small sets are where a half is missing. */
		step(i % 3000 < 1000 ? 6 : NODES);
		if (i % 3000 == 999)
			while (root)
				is_in[root - node] = 0, interval_remove(&root, root);
		if (i % 16 == 0)
			check_query(place(), place());
		if (i % 256 == 0)
			check_whole();
	}
	/* Removed while they are gone through: the next is found from the one before. */
	for (struct interval *at = interval_first(root, 0, UINT64_MAX), *next; at; at = next) {
		next = interval_next(root, at, 0, UINT64_MAX);
		interval_remove(&root, at);
		is_in[at - node] = 0;
		if (depth++ % 16 == 0)
			check_whole();
	}
	for (unsigned i = 0; i < NODES; i++)
		CHECK(!is_in[i] || node[i].end == 0);
	return 0;
}

#include "interval.h"

#include <stddef.h>

static int height_of(const struct interval *node)
{
	return node ? node->height : 0;
}

/* Equal starts are told apart by address, so that every node has one place. */
static int is_before(const struct interval *one, const struct interval *other)
{
	if (one->start != other->start)
		return one->start < other->start;
	return (uintptr_t)one < (uintptr_t)other;
}

static void update(struct interval *node)
{
	int left = height_of(node->left), right = height_of(node->right);

	node->height = (left > right ? left : right) + 1;
	node->highest_end = node->end;
	if (node->left && node->left->highest_end > node->highest_end)
		node->highest_end = node->left->highest_end;
	if (node->right && node->right->highest_end > node->highest_end)
		node->highest_end = node->right->highest_end;
}

static struct interval *rotate_right(struct interval *node)
{
	struct interval *top = node->left;

	node->left = top->right;
	top->right = node;
	update(node);
	update(top);
	return top;
}

static struct interval *rotate_left(struct interval *node)
{
	struct interval *top = node->right;

	node->right = top->left;
	top->left = node;
	update(node);
	update(top);
	return top;
}

/* The subtree's new top: its halves differ by two levels at most. */
static struct interval *balance(struct interval *node)
{
	int lean = height_of(node->left) - height_of(node->right);

	if (lean > 1) {
		if (height_of(node->left->left) < height_of(node->left->right))
			node->left = rotate_left(node->left);
		return rotate_right(node);
	}
	if (lean < -1) {
		if (height_of(node->right->right) < height_of(node->right->left))
			node->right = rotate_right(node->right);
		return rotate_left(node);
	}
	update(node);
	return node;
}

/* The recursions are as deep as the tree is high: 1.44 log2 of its size. */
static struct interval *insert(struct interval *top, struct interval *node)
{
	if (!top)
		return node;
	if (is_before(node, top))
		top->left = insert(top->left, node);
	else
		top->right = insert(top->right, node);
	return balance(top);
}

void interval_insert(struct interval **root, struct interval *node)
{
	node->left = node->right = NULL;
	update(node);
	*root = insert(*root, node);
}

static struct interval *take_leftmost(struct interval *top, struct interval **taken)
{
	if (!top->left) {
		*taken = top;
		return top->right;
	}
	top->left = take_leftmost(top->left, taken);
	return balance(top);
}

static struct interval *remove_top(struct interval *top)
{
	struct interval *heir, *right;

	if (!top->left)
		return top->right;
	if (!top->right)
		return top->left;
	right = take_leftmost(top->right, &heir);
	heir->left = top->left;
	heir->right = right;
	return balance(heir);
}

static struct interval *take(struct interval *top, struct interval *node)
{
	if (top == node)
		return remove_top(top);
	if (is_before(node, top))
		top->left = take(top->left, node);
	else
		top->right = take(top->right, node);
	return balance(top);
}

void interval_remove(struct interval **root, struct interval *node)
{
	*root = take(*root, node);
}

/* What ends at or before `from` is passed over with all that is below it, and what begins behind `last` with all
 * that is to its right: where the left half has an end behind `from` and yet nothing to find, that end's interval
 * begins behind `last`, and so does all to its right. So one path is walked, and not two. */
static struct interval *find(struct interval *top, const struct interval *behind, uint64_t from,
			     uint64_t last)
{
	while (top && top->highest_end > from) {
		if (!behind || is_before(behind, top)) {
			struct interval *found = find(top->left, behind, from, last);

			if (found)
				return found;
			if (top->start > last)
				return NULL;
			if (top->end > from)
				return top;
		}
		top = top->right;
	}
	return NULL;
}

struct interval *interval_first(struct interval *root, uint64_t from, uint64_t last)
{
	return find(root, NULL, from, last);
}

struct interval *interval_next(struct interval *root, const struct interval *node, uint64_t from,
			       uint64_t last)
{
	return find(root, node, from, last);
}

struct interval *interval_after(struct interval *root, const struct interval *node)
{
	struct interval *found = NULL;

	while (root)
		if (!node || is_before(node, root)) {
			found = root;
			root = root->left;
		} else {
			root = root->right;
		}
	return found;
}

struct interval *interval_at(struct interval *root, uint64_t start)
{
	while (root && root->start != start)
		root = start < root->start ? root->left : root->right;
	return root;
}

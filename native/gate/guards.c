#include "guards.h"

#include <errno.h>
#include <stdlib.h>

#include "base/list.h"

#define BY_RANGE(node) CONTAINER_OF(node, struct guard, by_range)
#define BY_ID(node) CONTAINER_OF(node, struct guard, by_id)

static struct guard *find(const struct guards *guards, uint64_t id)
{
	struct interval *node = interval_at(guards->by_id, id);

	return node ? BY_ID(node) : NULL;
}

static void link_range(struct guards *guards, struct guard *guard)
{
	guard->by_range.start = guard->is.start;
	guard->by_range.end = guard->is.end;
	interval_insert(&guards->by_range, &guard->by_range);
	guards->exclusive += guard->is.exclusive != 0;
}

static void unlink_range(struct guards *guards, struct guard *guard)
{
	interval_remove(&guards->by_range, &guard->by_range);
	guards->exclusive -= guard->is.exclusive != 0;
}

int guards_put(struct guards *guards, const struct seal_guard *guard, struct seal_guard *replaced)
{
	struct guard *there = find(guards, guard->id);

	if (there) {
		*replaced = there->is;
		unlink_range(guards, there);
		there->is = *guard;
		link_range(guards, there);
		return 1;
	}
	there = calloc(1, sizeof(*there));
	if (!there)
		return -ENOMEM;
	there->is = *guard;
	there->by_id.start = there->by_id.end = guard->id;
	interval_insert(&guards->by_id, &there->by_id);
	link_range(guards, there);
	guards->count++;
	return 0;
}

int guards_take(struct guards *guards, uint64_t id)
{
	struct guard *guard = find(guards, id);

	if (!guard)
		return -ENOENT;
	unlink_range(guards, guard);
	interval_remove(&guards->by_id, &guard->by_id);
	guards->count--;
	free(guard);
	return 0;
}

void guards_clear(struct guards *guards)
{
	while (guards->by_id)
		guards_take(guards, BY_ID(guards->by_id)->is.id);
}

/* An exclusive guard refuses opens wherever it lies; all else is met by ranges. */
static const struct guard *step(const struct guards *guards, const struct guard *behind,
				const struct seal_operation *operation,
				const struct seal_traits *traits)
{
	const struct interval *at = behind ? &behind->by_range : NULL;
	struct interval *node = NULL;
	uint64_t from, last;

	if (guards->exclusive && seal_opens((uint32_t)operation->op))
		node = interval_after(guards->by_range, at);
	else if (seal_operation_span(operation, traits, &from, &last))
		node = at ? interval_next(guards->by_range, at, from, last)
			  : interval_first(guards->by_range, from, last);
	return node ? BY_RANGE(node) : NULL;
}

const struct guard *guards_first(const struct guards *guards,
				 const struct seal_operation *operation,
				 const struct seal_traits *traits)
{
	return step(guards, NULL, operation, traits);
}

const struct guard *guards_next(const struct guards *guards, const struct guard *guard,
				const struct seal_operation *operation,
				const struct seal_traits *traits)
{
	return step(guards, guard, operation, traits);
}

const struct guard *guards_list(const struct guards *guards, const struct guard *behind)
{
	struct interval *node = interval_after(guards->by_id, behind ? &behind->by_id : NULL);

	return node ? BY_ID(node) : NULL;
}

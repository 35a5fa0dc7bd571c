/* The set of guards against a linear scan of the same guards: whatever an operation conflicts with is found, once,
 * for every operation of the rule book. */
#include <errno.h>
#include <string.h>

#include "../gate/guards.h"
#include "chance.h"
#include "check.h"

#define IDS 400
#define ROUNDS 6000

static struct seal_guard model[IDS];
static uint8_t is_there[IDS];

static uint64_t place(void)
{
	if (chance(30) == 0)
		return UINT64_MAX - chance(3);
	return chance(64) * 4096;
}

static uint64_t id_of(unsigned i)
{
	return i == 0 ? 0 : i == 1 ? UINT64_MAX : i * 7;
}

static void put(struct guards *guards, unsigned i)
{
	struct seal_guard guard = {
		.id = id_of(i),
		.start = place(),
		.holder = (int32_t)chance(3),
		.exclusive = chance(40) == 0,
		.policy = (uint32_t)chance(5),
		.backed = (uint32_t)chance(2),
	};
	struct seal_guard replaced;

	guard.end = chance(3) ? guard.start + chance(8) * 4096 : place();
	CHECK(guards_put(guards, &guard, &replaced) == is_there[i]);
	CHECK(!is_there[i] || !memcmp(&replaced, &model[i], sizeof(replaced)));
	model[i] = guard;
	is_there[i] = 1;
}

static void take(struct guards *guards, unsigned i)
{
	CHECK(guards_take(guards, id_of(i)) == (is_there[i] ? 0 : -ENOENT));
	is_there[i] = 0;
}

static unsigned index_of(const struct guard *guard)
{
	for (unsigned i = 0; i < IDS; i++)
		if (is_there[i] && model[i].id == guard->is.id)
			return i;
	CHECK(0);
	return 0;
}

static unsigned meets(const struct guards *guards, const struct seal_operation *operation,
		      const struct seal_traits *traits)
{
	uint8_t found[IDS] = {0};
	unsigned count = 0;

	for (const struct guard *at = guards_first(guards, operation, traits); at;
	     at = guards_next(guards, at, operation, traits)) {
		unsigned i = index_of(at);

		CHECK(!found[i] && !memcmp(&at->is, &model[i], sizeof(model[i])));
		found[i] = 1;
	}
	for (unsigned i = 0; i < IDS; i++) {
		int conflicts = is_there[i] && (seal_conflicts(operation, &model[i], traits, 0) ||
						seal_conflicts(operation, &model[i], traits, 1));

		CHECK(!conflicts || found[i]);
		count += (unsigned)conflicts;
	}
	return count;
}

static void check_list(const struct guards *guards)
{
	const struct guard *at = NULL, *before = NULL;
	size_t count = 0, exclusive = 0;

	while ((at = guards_list(guards, at))) {
		CHECK(!before || before->is.id < at->is.id);
		CHECK(is_there[index_of(at)]);
		before = at;
		count++;
		exclusive += at->is.exclusive;
	}
	for (unsigned i = 0; i < IDS; i++)
		count -= is_there[i];
	CHECK(count == 0 && exclusive == guards->exclusive);
}

int main(void)
{
	struct guards guards = {0};
	unsigned conflicts[SEAL_OP_COUNT + 1] = {0};

	for (unsigned round = 0; round < ROUNDS; round++) {
		const struct seal_traits traits = {.block_size = 4096,
						   .reflink = (uint32_t)chance(2),
						   .atomic = (uint32_t)chance(2)};
		struct seal_operation operation = {.op = (int32_t)chance(SEAL_OP_COUNT + 1),
						   .offset = chance(2) ? place() : chance(1 << 18),
						   .length = chance(4) ? chance(1 << 16) : place()};

		if (chance(3))
			put(&guards, (unsigned)chance(IDS));
		else
			take(&guards, (unsigned)chance(IDS));
		conflicts[operation.op] += meets(&guards, &operation, &traits);
		if (round % 100 == 0)
			check_list(&guards);
		if (round % 2000 == 1999) {
			guards_clear(&guards);
			memset(is_there, 0, sizeof(is_there));
			CHECK(!guards.count && !guards.exclusive && !guards.by_range);
			CHECK(meets(&guards, &operation, &traits) == 0);
		}
	}
	/* All but those that conflict with nothing ever: read, mmap, and a plain write in place. */
	for (unsigned op = SEAL_OP_WRITE_ATOMIC; op <= SEAL_OP_COUNT; op++)
		CHECK(conflicts[op]);
	guards_clear(&guards);
	return 0;
}

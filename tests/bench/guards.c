/* How long it takes to judge one operation among COUNT guards of a file, ns: by the set of guards, and by a linear
 * scan of the same guards. Usage: guards set|scan COUNT OPERATIONS. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gate/guards.h"
#include "tests/chance.h"

#define BLOCK 4096u
#define SAMPLES 50

static const struct seal_traits traits = {.block_size = BLOCK};
static struct guards guards;
static struct seal_guard *all;
static size_t count;

/* As the gate asks: who holds the guard is found out only where it decides. */
static int meets(const struct seal_operation *operation, const struct seal_guard *guard)
{
	return seal_conflicts(operation, guard, &traits, 1) ||
	       seal_conflicts(operation, guard, &traits, 0);
}

static unsigned by_set(const struct seal_operation *operation)
{
	unsigned met = 0;

	for (const struct guard *at = guards_first(&guards, operation, &traits); at;
	     at = guards_next(&guards, at, operation, &traits))
		met += (unsigned)meets(operation, &at->is);
	return met;
}

static unsigned by_scan(const struct seal_operation *operation)
{
	unsigned met = 0;

	for (size_t i = 0; i < count; i++)
		met += (unsigned)meets(operation, &all[i]);
	return met;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
	unsigned met = 0, operations;
	int is_scan;

	if (argc != 4)
		return 2;
	is_scan = strcmp(argv[1], "scan") == 0;
	count = strtoul(argv[2], NULL, 10);
	operations = (unsigned)strtoul(argv[3], NULL, 10);
	all = calloc(count, sizeof(*all));
	for (size_t i = 0; all && i < count; i++) {
		struct seal_guard replaced;

		all[i] = (struct seal_guard){.id = i + 1,
					     .start = i * 2 * BLOCK,
					     .end = (i * 2 + 1) * BLOCK,
					     .policy = SEAL_POLICY_WAIT};
		if (guards_put(&guards, &all[i], &replaced))
			return 1;
	}
	for (unsigned sample = 0; sample < SAMPLES; sample++) {
		double begun = now();

		for (unsigned i = 0; i < operations; i++) {
			const struct seal_operation operation = {.op = SEAL_OP_PUNCH,
								 .offset =
									 chance(count) * 2 * BLOCK,
								 .length = BLOCK};

			met += is_scan ? by_scan(&operation) : by_set(&operation);
		}
		printf("%.1f\n", (now() - begun) / operations);
	}
	/* Each meets the one guard at its offset. */
	return met == SAMPLES * operations ? 0 : 1;
}

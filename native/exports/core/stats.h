/* What an export counts: a page that its process writes and `sealctl export` reads, mapped from a file
 * in the runtime directory. Counters only grow; readers take them one by one, so that two of them may
 * be of different moments. sealsvc/exports/stats.py reads this layout. */
#ifndef EXPORT_STATS_H
#define EXPORT_STATS_H

#include <stdint.h>
#include <time.h>

#define EXPORT_STATS_MAGIC UINT64_C(0x315441545350584c) /* "LXPSTAT1" */
#define EXPORT_STATS_BUCKETS 40 /* bucket n counts what took [2^(n-1), 2^n) ns; 0: nothing at all */

enum export_op {
	EXPORT_OP_READ,
	EXPORT_OP_WRITE,
	EXPORT_OP_ZERO,
	EXPORT_OP_DISCARD,
	EXPORT_OP_FLUSH,
	EXPORT_OP_COMPARE,
	EXPORT_OPS,
};

enum export_state {
	EXPORT_STARTING,
	EXPORT_SERVING,
	EXPORT_PAUSED,
	EXPORT_ENDED,
};

struct export_histogram {
	uint64_t count, total_ns, longest_ns;
	uint64_t buckets[EXPORT_STATS_BUCKETS];
};

struct export_stats {
	uint64_t magic;
	uint32_t size; /* of this structure */
	uint32_t state;
	uint32_t pid;
	uint32_t in_flight;
	uint64_t device_size;
	uint64_t seals;	    /* grants: the first, and one after each recall */
	uint64_t errors;    /* requests that failed */
	uint64_t paused_at; /* ns of CLOCK_BOOTTIME; 0: not paused */
	char seal[32];	    /* id of the seal, or "" */
	char why[128];	    /* why it is paused, or what keeps it from resuming */
	uint64_t bytes[EXPORT_OPS];
	struct export_histogram latency[EXPORT_OPS];
	struct export_histogram pauses;
	uint64_t
		refusals; /* tries that the keeper of the seals refused, and that were made again */
};

_Static_assert(sizeof(struct export_stats) <= 4096, "one page");

static inline uint64_t export_now(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void export_record(struct export_histogram *histogram, uint64_t ns)
{
	unsigned int bucket = ns ? 64 - (unsigned int)__builtin_clzll(ns) : 0;
	uint64_t longest = __atomic_load_n(&histogram->longest_ns, __ATOMIC_RELAXED);

	if (bucket >= EXPORT_STATS_BUCKETS)
		bucket = EXPORT_STATS_BUCKETS - 1;
	__atomic_fetch_add(&histogram->count, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&histogram->total_ns, ns, __ATOMIC_RELAXED);
	__atomic_fetch_add(&histogram->buckets[bucket], 1, __ATOMIC_RELAXED);
	while (ns > longest && !__atomic_compare_exchange_n(&histogram->longest_ns, &longest, ns, 1,
							    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

#endif

/* The tripwire's common part: tells that the map of a sealed file changes, or has changed, and by whom. */
#ifndef SEAL_TRIP_H
#define SEAL_TRIP_H

#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "kernel_types.h"
#include "maps.h"
#include "sealsvc/verdict.h"

/* File blocks from `first` on; `count` of 0: to the end. */
struct change {
	uint32_t function; /* enum seal_trip_function */
	uint32_t
		certain; /* what was mapped there is so no more, in memory and in the transaction */
	uint64_t first, count;
};

struct search {
	const struct seal_bpf_entry *entry;
	uint64_t start, end; /* bytes */
	uint32_t found;
};

/* A seal that is being made has no promised map yet. */
static long meet_range(uint32_t i, struct search *s)
{
	const struct seal_bpf_range *r;

	if (i >= SEAL_BPF_RANGES)
		return 1;
	r = &s->entry->ranges[i];
	if (r->policy == SEAL_POLICY_ARMING || s->start >= r->end || r->start >= s->end)
		return 0;
	s->found = 1;
	return 1;
}

/* The entry of the inode's file, or NULL; the key is set when it is there. Others pay for two loads. */
static __always_inline const struct seal_bpf_entry *sealed(struct inode *inode,
							   struct seal_bpf_file *key)
{
	struct seal_bpf_control *c = control();
	const struct seal_bpf_entry *entry;
	uint64_t bit;

	if (!c || !c->entries)
		return 0;
	key->inode = BPF_CORE_READ(inode, i_ino);
	bit = key->inode % SEAL_BPF_BITS;
	if (!(c->sealed[bit / 64] & 1ull << bit % 64))
		return 0;
	key->device = BPF_CORE_READ(inode, i_sb, s_dev);
	entry = bpf_map_lookup_elem(&seal_files, key);
	if (entry && entry->generation && entry->generation != BPF_CORE_READ(inode, i_generation))
		return 0;
	return entry;
}

static __always_inline void tell_trip(void *ctx, struct inode *inode, const struct change *change,
				      int64_t result)
{
	struct seal_bpf_control *c = control();
	struct seal_bpf_file key = {0, 0};
	const struct seal_bpf_entry *entry = sealed(inode, &key);
	uint64_t task = bpf_get_current_pid_tgid();
	struct search s = {.entry = entry};
	struct seal_bpf_trip *trip;
	uint32_t shift;
	long depth;

	if (!entry || !c)
		return;
	shift = BPF_CORE_READ(inode, i_blkbits) & 31;
	s.start = change->first << shift;
	s.end = change->count ? (change->first + change->count) << shift : UINT64_MAX;
	if (s.end < s.start)
		s.end = UINT64_MAX;
	bpf_loop(entry->count, meet_range, &s, 0);
	if (!s.found)
		return;
	trip = bpf_ringbuf_reserve(&seal_trips, sizeof(*trip), 0);
	if (!trip) {
		__sync_fetch_and_add(&c->lost_events, 1);
		return;
	}
	trip->time = bpf_ktime_get_ns();
	trip->file = key;
	trip->offset = s.start;
	trip->length = s.end == UINT64_MAX ? 0 : s.end - s.start;
	trip->result = result;
	trip->tgid = task >> 32;
	trip->tid = (uint32_t)task;
	trip->uid = (uint32_t)bpf_get_current_uid_gid();
	trip->function = change->function;
	trip->certain = change->certain;
	bpf_get_current_comm(trip->comm, sizeof(trip->comm));
	depth = bpf_get_stack(ctx, trip->stack, sizeof(trip->stack), 0);
	trip->depth = depth > 0 ? depth / sizeof(trip->stack[0]) : 0;
	bpf_ringbuf_submit(trip, 0);
}

#endif

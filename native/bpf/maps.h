/* The maps. All are pinned, and shared by an old and a new set of programs while one takes over. */
#ifndef SEAL_MAPS_H
#define SEAL_MAPS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "sealsvc/bpf_trip_layout.h"

/* An operation that will be refused when it asks for permission for this file. */
struct note {
	struct seal_bpf_file file;
	int64_t error;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE); /* so that user space, too, can count atomically */
	__type(key, uint32_t);
	__type(value, struct seal_bpf_control);
} seal_control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17); /* sealed files; its buckets take 2 MiB */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct seal_bpf_file);
	__type(value, struct seal_bpf_entry);
} seal_files SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, uint64_t); /* tgid << 32 | tid */
	__type(value, struct note);
} seal_notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct seal_bpf_underway);
	__type(value, struct seal_bpf_since);
} seal_underway SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} seal_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 19);
} seal_trips SEC(".maps");

const volatile struct seal_bpf_set seal_set;

static __always_inline struct seal_bpf_control *control(void)
{
	uint32_t zero = 0;

	return bpf_map_lookup_elem(&seal_control, &zero);
}

#endif

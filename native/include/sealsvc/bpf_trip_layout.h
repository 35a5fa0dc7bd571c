/* What the tripwire's BPF programs (native/bpf/trip_*.bpf.c) and those who read their ring share. It is
 * pinned: change SEAL_BPF_LAYOUT (bpf_layout.h) with it. */
#ifndef SEALSVC_BPF_TRIP_LAYOUT_H
#define SEALSVC_BPF_TRIP_LAYOUT_H

#include <stdint.h>

#include "sealsvc/bpf_layout.h"

#define SEAL_TRIP_DEPTH 24 /* return addresses of the kernel's stack */

/* The kernel's functions that have a program. */
enum seal_trip_function {
	SEAL_TRIP_XFS_DEL_EXTENT,
	SEAL_TRIP_XFS_BUNMAPI,
	SEAL_TRIP_XFS_COLLAPSE,
	SEAL_TRIP_XFS_INSERT,
	SEAL_TRIP_XFS_SWAP,
	SEAL_TRIP_XFS_REPAIR,
	SEAL_TRIP_EXT4_REMOVE,
	SEAL_TRIP_EXT4_SHIFT,
	SEAL_TRIP_EXT4_SWAP,
	SEAL_TRIP_EXT4_MOVE,
	SEAL_TRIP_EXT4_SWAP_BOOT,
	SEAL_TRIP_EXT4_IND_REMOVE,
	SEAL_TRIP_EXT4_IND_TRUNCATE,
	SEAL_TRIP_FUNCTIONS,
};

struct seal_bpf_trip {
	uint64_t time; /* CLOCK_MONOTONIC, ns */
	struct seal_bpf_file file;
	uint64_t offset, length; /* bytes; length 0: to the end */
	int64_t result;		 /* of the function, where it had ended */
	int32_t tgid, tid;
	uint32_t uid;
	uint32_t function; /* enum seal_trip_function */
	uint32_t certain;  /* what was mapped in the range is not any more; else compare the map */
	uint32_t depth;
	char comm[16];
	uint64_t stack[SEAL_TRIP_DEPTH]; /* addresses, the innermost first */
};

_Static_assert(sizeof(struct seal_bpf_trip) == 88 + 8 * SEAL_TRIP_DEPTH,
	       "seal_bpf_trip is in a pinned ring");

#endif

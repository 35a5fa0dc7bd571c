/* What the BPF programs, their loader and the pinned maps share. The maps outlive the service: change
 * SEAL_BPF_LAYOUT with every change of a structure or of a map. */
#ifndef SEALSVC_BPF_LAYOUT_H
#define SEALSVC_BPF_LAYOUT_H

#include <stdint.h>

#define SEAL_BPF_LAYOUT 3
#define SEAL_BPF_RANGES 64 /* per file */
#define SEAL_BPF_TOKENS 8  /* named in one event */
#define SEAL_BPF_BITS 4096 /* a power of two */

/* Devices are dev_t of the kernel (major << 20 | minor), not of stat(2). */
struct seal_bpf_file {
	uint64_t device, inode;
};

/* Which enforcer makes conflicts wait in front of this one: what it sees is left to it. */
enum seal_bpf_front {
	SEAL_BPF_ALONE,
	SEAL_BPF_BEHIND_FANOTIFY,
	SEAL_BPF_BEHIND_LEASE,
	/* fanotify, and it lets go on what meets no seal in the range. Truncations are left to it
	 * altogether: those by path it sees, and none can be told from those through an overlay. */
	SEAL_BPF_BEHIND_WATCH,
};

struct seal_bpf_range {
	uint64_t start, end; /* bytes, whole blocks */
	uint64_t token;
	int32_t holder; /* tgid; 0: none */
	uint8_t exclusive;
	uint8_t policy; /* enum seal_policy */
	uint8_t front;	/* enum seal_bpf_front */
	uint8_t unused;
};

/* One sealed file. An element that is replaced may be filled anew while a program reads it: `version`
 * is never used twice, so that a reader can tell. */
struct seal_bpf_entry {
	uint64_t version;
	uint32_t generation; /* of the inode; 0: not known */
	uint32_t reflink;    /* the file system may turn copies into clones */
	uint32_t count, exclusive;
	struct seal_bpf_range ranges[SEAL_BPF_RANGES];
};

/* The one element of the control map. `entries` is never less than the number of sealed files and
 * `exclusive` than that of files with an exclusive seal. The service is exempt while the process
 * that has its number started at that time (clock ticks since boot, as in /proc/PID/stat). */
struct seal_bpf_control {
	uint32_t layout;
	uint32_t entries, exclusive;
	uint32_t notes; /* operations about to be refused */
	uint32_t loose; /* operations under way that are listed without their file */
	int32_t service;
	uint64_t service_start;
	uint64_t lost_events;
	uint64_t untracked; /* operations that found no room in the map of those under way */
	uint64_t sealed[SEAL_BPF_BITS /
			64];  /* a bit for each sealed inode: its number modulo BITS */
	uint64_t blind_until; /* until then (CLOCK_MONOTONIC, ns) a note may be missing */
};

/* An operation under way. `file` is what it works on; device 0: it may be any file of the device that
 * the value names. */
struct seal_bpf_underway {
	uint64_t task; /* tgid << 32 | tid */
	struct seal_bpf_file file;
};

struct seal_bpf_since {
	uint64_t time; /* CLOCK_MONOTONIC, ns */
	uint64_t device;
	uint64_t set;	   /* which programs listed it: their id */
	uint64_t expected; /* MAY_READ, MAY_WRITE: permissions that it has not asked for yet */
};

/* Programs without whose trace lsm/file_permission takes an operation for unjudged (skipped.h). */
enum seal_bpf_traced {
	SEAL_BPF_TRACED_FALLOCATE = 1,
	SEAL_BPF_TRACED_COPY = 2,
	SEAL_BPF_TRACED_CLONE = 4,
	SEAL_BPF_TRACED_DEDUPE = 8,
	SEAL_BPF_TRACED_REMAP = 16,
	SEAL_BPF_TRACED_WRITEV = 32,
};

/* What the loader tells one set of programs. Two are attached while one takes over. */
struct seal_bpf_set {
	uint64_t id;	 /* not 0, and no other set's */
	uint64_t traced; /* enum seal_bpf_traced: what of it is attached */
};

struct seal_bpf_event {
	uint64_t time; /* CLOCK_MONOTONIC, ns */
	uint64_t device, inode;
	uint64_t offset, length; /* as in struct seal_operation */
	uint64_t argument;	 /* fallocate mode, ioctl command, open or write flags */
	int32_t op;		 /* enum seal_op */
	int32_t error;		 /* an errno, positive */
	int32_t tgid, tid;
	uint32_t uid;
	uint32_t token_count; /* how many it met; the first SEAL_BPF_TOKENS are named */
	uint64_t tokens[SEAL_BPF_TOKENS];
	char comm[16];
};

_Static_assert(sizeof(struct seal_bpf_range) == 32, "seal_bpf_range is in pinned maps");
_Static_assert(sizeof(struct seal_bpf_entry) == 24 + 32 * SEAL_BPF_RANGES, "seal_bpf_entry");
_Static_assert(sizeof(struct seal_bpf_control) == 56 + SEAL_BPF_BITS / 8,
	       "seal_bpf_control is in a pinned map");
_Static_assert(sizeof(struct seal_bpf_since) == 32, "seal_bpf_since is in a pinned map");
_Static_assert(sizeof(struct seal_bpf_event) == 152, "seal_bpf_event is in a pinned ring");

#endif

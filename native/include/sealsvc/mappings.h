/* Who maps or has open an inode: walks of /proc, without the GIL. */
#ifndef SEALSVC_MAPPINGS_H
#define SEALSVC_MAPPINGS_H

#include <stddef.h>
#include <stdint.h>

struct seal_mapping {
	int32_t pid;
	uint16_t shared;	 /* 1: MAP_SHARED */
	uint16_t writable;	 /* 1: PROT_WRITE */
	uint64_t address;	 /* of the part that overlaps the range asked for */
	uint64_t offset, length; /* bytes of the file */
};

/* Mappings of (device, inode) that overlap file bytes [start, start + length) in the process `pid`,
 * or in every process when pid is 0 (skipping kernel threads). At most `max` are stored; returns how
 * many there are (may exceed max), or -errno (-ESRCH: no such process, -EACCES: it may not be looked
 * into; when pid is 0, such processes are skipped). A process that vanishes during the walk has no
 * mappings, and one that maps, moves or forks during it may be missed. */
int64_t seal_mappings(int pid, uint64_t device, uint64_t inode, uint64_t start, uint64_t length,
		      struct seal_mapping *out, size_t max);

/* 1 when somebody maps the file of descriptor fd (O_PATH will do), 0 when nobody does, -errno when that
 * cannot be told. `prover` is the BPF program `mapped` of native/bpf; it looks at the file itself, and
 * misses nobody. */
int seal_is_mapped(int prover, int fd);

struct seal_opener {
	int32_t pid;
	int32_t fd;	/* -1: mapped, with no descriptor of it left */
	uint32_t flags; /* open(2) flags from fdinfo; of a mapping O_RDWR if shared and writable */
};

/* Descriptors of (device, inode), and mappings of it in processes that have no descriptor of it, in
 * every process but `except_pid`. O_PATH descriptors do not count. Counting as above; processes that may
 * not be looked into are skipped, and descriptors in flight (SCM_RIGHTS), registered with io_uring or
 * kept by the kernel (loop devices, swap) belong to nobody: the list is for people, it proves nothing.
 */
int64_t seal_openers(uint64_t device, uint64_t inode, int except_pid, struct seal_opener *out,
		     size_t max);

#endif

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
	int32_t error;		 /* -errno: nothing can be said about the process, else 0 */
};

/* Mappings of (device, inode) that overlap file bytes [start, start + length) in the process `pid`, or in
 * every process when pid is 0. Returns how many rows *out has (to be freed with seal_rows_free()), or
 * -errno: -ESRCH, there is no such process; -EAGAIN, too many processes keep their maps from being read, or
 * there are new ones all the time. A process that may not be looked into (-EACCES), or that keeps its maps
 * from being read (-ETIMEDOUT), has one row with that error: it may map all of the range. A process that
 * vanishes during the walk has no mappings, and one that maps or moves during it may be missed. */
int64_t seal_mappings(int pid, uint64_t device, uint64_t inode, uint64_t start, uint64_t length,
		      struct seal_mapping **out);

void seal_rows_free(void *rows);

struct seal_opener {
	int32_t pid;
	int32_t fd;	/* -1: mapped, with no descriptor of it left */
	uint32_t flags; /* open(2) flags from fdinfo; of a mapping O_RDWR if shared and writable */
};

/* Descriptors of (device, inode), and mappings of it in processes that have no descriptor of it, in
 * every process but `except_pid`. O_PATH descriptors do not count. Results as above; processes that may
 * not be looked into are left out, and descriptors in flight (SCM_RIGHTS), registered with io_uring or
 * kept by the kernel (loop devices, swap) belong to nobody: the list is for people, it proves nothing.
 */
int64_t seal_openers(uint64_t device, uint64_t inode, int except_pid, struct seal_opener **out);

#endif

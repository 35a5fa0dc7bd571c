/* Is a range of a file mapped as a holder says? Walks of /proc, without the GIL.
 *
 * The answer is one of a moment: what the process unmaps, zaps or maps anew later is not known. */
#ifndef SEALSVC_VALIDATE_H
#define SEALSVC_VALIDATE_H

#include <stddef.h>
#include <stdint.h>

#include "sealsvc/extents.h"

/* What the mapping must be. */
enum {
	SEAL_WANT_ADDRESS = 1,	/* the first byte stands at `address` */
	SEAL_WANT_SYNC = 2,	/* MAP_SYNC */
	SEAL_WANT_PRESENT = 4,	/* every page is there */
	SEAL_WANT_HUGE = 8,	/* every aligned 2 MiB is one huge page */
	SEAL_WANT_PLACE = 16,	/* every page that is there is the one that the extents name */
	SEAL_READ_ENTRIES = 32, /* read every entry of pagemap, also where PAGEMAP_SCAN would do */
};

/* The check that failed. */
enum {
	SEAL_CHECK_NONE = 0, /* the mapping is as wanted */
	SEAL_CHECK_SHARED,
	SEAL_CHECK_INODE,
	SEAL_CHECK_COVERAGE,
	SEAL_CHECK_OFFSET,
	SEAL_CHECK_SYNC,
	SEAL_CHECK_PRESENT,
	SEAL_CHECK_PLACE,
	SEAL_CHECK_HUGE,
};

/* Bytes; `start` and `length` are whole pages of the file (device, inode). With SEAL_WANT_ADDRESS
 * exactly the areas from `address` on count, else every shared one of the process that maps part of
 * the range. `extents` are in order and do not overlap; `base` is the physical address of byte 0 of
 * the device that their `physical` counts on (both for SEAL_WANT_PLACE). */
struct seal_mapping_question {
	int32_t pid;
	uint32_t want;
	uint64_t device, inode;
	uint64_t start, length, address;
	const struct seal_extent *extents;
	size_t extent_count;
	uint64_t base;
};

/* Pages are the system's; a huge page is 2 MiB. `pages` is what the areas hold of the range, more
 * than once where several map it. `placed` counts pages whose place is proven, `entries` those read
 * from pagemap. `scanned`: by PAGEMAP_SCAN (Linux 6.7); without it huge pages cannot be told.
 * `hidden`: the kernel does not tell this service the place of pages (CAP_SYS_ADMIN).
 *
 * Of the first failure, in order of address (without one of the file's offset): `address` (0:
 * nowhere) and `offset` say where; `expected` and `found` are inodes (and found_device), file
 * offsets, or physical addresses, as `check` says; for SEAL_CHECK_HUGE found is 1 when it cannot be
 * told. */
struct seal_mapping_answer {
	uint64_t areas, pages, present, huge, placed, entries;
	uint32_t scanned, hidden;
	uint32_t check;
	uint64_t address, offset, expected, found, found_device;
};

/* 0: *out is the answer. -errno: there is none (-EAGAIN: the process changes its mappings meanwhile;
 * -EACCES, -EPERM: it may not be looked into; -E2BIG: it maps the file by more than a million areas, or by
 * more than 64 TiB in all).
 * A process that is gone maps nothing. Whether `pid` was the same process all the time is for the
 * caller to know, by a pidfd. */
int seal_mapping_validate(const struct seal_mapping_question *question,
			  struct seal_mapping_answer *out);

#endif

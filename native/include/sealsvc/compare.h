/* Comparing the present extent maps of many files with recorded ones. */
#ifndef SEALSVC_COMPARE_H
#define SEALSVC_COMPARE_H

#include "sealsvc/extents.h"

/* `count` ranges of files of one file system, in columns. `fds` are descriptors of the files, which
 * others may close meanwhile: what is read is of `inodes` on `device`, or not read. The extents of
 * range i are rows[i] of `extents`, behind those of all ranges before. */
struct seal_recorded {
	uint64_t device;
	size_t count;
	const int32_t *fds;
	const uint64_t *inodes, *starts, *lengths;
	const uint32_t *rows;
	const struct seal_extent *extents;
};

/* The index of the first range, from `from` on, whose present map is not the recorded one, row by
 * row; `count` when there is none. Of that range *found (released with seal_extents_free) has
 * *found_count present rows, or *found_count is -errno: it could not be read. A range whose rows only
 * differ in how extents are split counts as different here: the caller looks closer. */
size_t seal_maps_compare(const struct seal_recorded *recorded, size_t from,
			 struct seal_extent **found, int64_t *found_count);

#endif

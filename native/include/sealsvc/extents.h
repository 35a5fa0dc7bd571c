/* Extent maps by FIEMAP (Documentation/filesystems/fiemap.rst). Bytes throughout. */
#ifndef SEALSVC_EXTENTS_H
#define SEALSVC_EXTENTS_H

#include <stddef.h>
#include <stdint.h>

/* One row of a map; an N x 4 array of uint64 seen from Python. */
struct seal_extent {
	uint64_t logical, physical, length, flags; /* flags: FIEMAP_EXTENT_* */
};

/* Read the extents that overlap [start, start + length) of fd, in order, into a buffer that the
 * function allocates (*out, released with seal_extents_free). `sync` passes FIEMAP_FLAG_SYNC.
 * Returns the number of extents, or -errno and leaves *out alone. Extents are as the file system
 * reports them: the first may begin before `start`, the last may end after the range. They do not
 * overlap, even in a map that changes during the read; but then they are no map of one moment. */
int64_t seal_extents_read(int fd, uint64_t start, uint64_t length, int sync,
			  struct seal_extent **out);
void seal_extents_free(struct seal_extent *extents);

#endif

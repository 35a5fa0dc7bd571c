#include "sealsvc/compare.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* Of the report, not of the extent's place: an extent loses LAST when another is added. */
#define PASSING ((uint64_t)(FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_MERGED))
/* Their physical address does not advance with the logical one (extents.c). */
#define PLACELESS                                                                                  \
	((uint64_t)(FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED |       \
		    FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_DATA_TAIL))

/* ext4 tells its maps even after it was shut down, but not attributes. Reading data would not do: of a
 * watched file the gate cannot be asked then, and the answer is EPERM. */
static int refuse_if_dead(int fd)
{
	char value[8];

	if (fgetxattr(fd, "trusted.sealsvc", value, sizeof(value)) >= 0)
		return 0;
	return errno == ENODATA || errno == EOPNOTSUPP || errno == EPERM || errno == ERANGE
		       ? 0
		       : -errno;
}

/* A descriptor of our own of the file, which lives: 0 or more, or -errno. */
static int open_again(int anchor, uint64_t device, uint64_t inode)
{
	int error = 0, fd = fcntl(anchor, F_DUPFD_CLOEXEC, 0);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		error = -errno;
	else if (st.st_dev != device || st.st_ino != inode)
		error = -ESTALE; /* the anchor was closed, and its number used again */
	else
		error = refuse_if_dead(fd);
	if (error) {
		close(fd);
		return error;
	}
	return fd;
}

static struct seal_extent clipped(const struct seal_extent *extent, uint64_t start, uint64_t end)
{
	struct seal_extent row = *extent;

	if (row.logical < start) {
		row.physical += start - row.logical;
		row.length -= start - row.logical;
		row.logical = start;
	}
	if (row.length > end - row.logical)
		row.length = end - row.logical;
	return row;
}

static int is_same(const struct seal_extent *a, const struct seal_extent *b)
{
	return a->logical == b->logical && a->physical == b->physical && a->length == b->length &&
	       !((a->flags ^ b->flags) & ~PASSING) && !(a->flags & PLACELESS);
}

static int are_same(const struct seal_extent *recorded, size_t rows,
		    const struct seal_extent *found, size_t count, uint64_t start, uint64_t end)
{
	size_t at = 0;

	for (size_t i = 0; i < count; i++) {
		struct seal_extent row;

		/* FIEMAP reports whole extents: none of these lies outside, but who knows. */
		if (found[i].logical >= end || found[i].logical + found[i].length <= start)
			continue;
		row = clipped(&found[i], start, end);
		if (at == rows || !is_same(&recorded[at++], &row))
			return 0;
	}
	return at == rows;
}

size_t seal_maps_compare(const struct seal_recorded *recorded, size_t from,
			 struct seal_extent **found, int64_t *found_count)
{
	const struct seal_extent *extents = recorded->extents;
	int fd = -EBADF, anchor = -1;
	size_t i;

	for (i = 0; i < from; i++)
		extents += recorded->rows[i];
	for (; i < recorded->count; extents += recorded->rows[i++]) {
		uint64_t start = recorded->starts[i], length = recorded->lengths[i];
		int same;

		/* Seals of one file come one after the other. */
		if (recorded->fds[i] != anchor || fd < 0 ||
		    recorded->inodes[i] != recorded->inodes[i - 1]) {
			if (fd >= 0)
				close(fd);
			anchor = recorded->fds[i];
			fd = open_again(anchor, recorded->device, recorded->inodes[i]);
		}
		*found = NULL;
		*found_count = fd < 0 ? fd : seal_extents_read(fd, start, length, 0, found);
		if (*found_count < 0)
			break;
		same = are_same(extents, recorded->rows[i], *found, (size_t)*found_count, start,
				start + length);
		if (!same)
			break;
		seal_extents_free(*found);
	}
	if (fd >= 0)
		close(fd);
	return i;
}

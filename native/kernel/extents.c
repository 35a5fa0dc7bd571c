#include "sealsvc/extents.h"

#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/vector.h"

/* Extents per ioctl: from here on the time per extent is flat (32 cost 30 % more). */
#define BATCH 512

/* Their fe_physical is no place on the device of the byte at fe_logical (fs/ioctl.c; btrfs reports
 * the start of the compressed extent), so it does not move along with it. */
#define PLACELESS                                                                                  \
	(FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED |                  \
	 FIEMAP_EXTENT_DATA_INLINE)

struct batch {
	struct fiemap head;
	struct fiemap_extent extents[BATCH];
};

struct rows {
	struct seal_extent *at;
	size_t count, room;
};

/* Keep what lies at or beyond `position`. In a map that changes during the read an extent may have
 * grown backwards over what was reported before; rows do not overlap all the same. */
static int append(struct rows *rows, const struct fiemap_extent *extent, uint64_t position)
{
	struct seal_extent row = {extent->fe_logical, extent->fe_physical, extent->fe_length,
				  extent->fe_flags};
	struct seal_extent *next;

	if (rows->count && row.logical < position) {
		uint64_t known = position - row.logical;

		if (known >= row.length)
			return 0;
		row.logical = position;
		row.length -= known;
		if (!(row.flags & PLACELESS))
			row.physical += known;
	}
	next = VECTOR_ADD(rows, BATCH);
	if (!next)
		return -ENOMEM;
	*next = row;
	return 0;
}

static int fetch(int fd, struct batch *batch, uint64_t start, uint64_t end, uint32_t flags)
{
	memset(&batch->head, 0, sizeof(batch->head));
	batch->head.fm_start = start;
	batch->head.fm_length = end - start;
	batch->head.fm_flags = flags;
	batch->head.fm_extent_count = BATCH;
	return ioctl(fd, FS_IOC_FIEMAP, &batch->head) < 0 ? -errno : 0;
}

/* Take a batch over. Returns 1 when there may be more behind *position, 0 at the end, or -errno. */
static int take(struct rows *rows, const struct batch *batch, uint64_t *position, uint64_t end)
{
	uint64_t before = *position;
	uint32_t last = 0;

	for (uint32_t i = 0; i < batch->head.fm_mapped_extents; i++) {
		const struct fiemap_extent *extent = &batch->extents[i];
		uint64_t behind = extent->fe_logical + extent->fe_length;
		int error = append(rows, extent, *position);

		if (error)
			return error;
		if (behind > *position)
			*position = behind;
		last |= extent->fe_flags & FIEMAP_EXTENT_LAST;
	}
	/* A batch without progress ends the read: whatever happens to the file, it cannot loop. */
	return !last && *position > before && *position < end;
}

static int read_all(int fd, struct rows *rows, uint64_t start, uint64_t end, int sync)
{
	uint32_t flags = sync ? FIEMAP_FLAG_SYNC : 0;
	uint64_t position = start;
	struct batch batch;
	int more;

	do {
		int error = fetch(fd, &batch, position, end, flags);

		/* Behind the largest offset of the file system there are no extents. */
		if (error == -EFBIG && position > start)
			return 0;
		if (error)
			return error;
		flags = 0;
		more = take(rows, &batch, &position, end);
	} while (more > 0);
	return more;
}

int64_t seal_extents_read(int fd, uint64_t start, uint64_t length, int sync,
			  struct seal_extent **out)
{
	uint64_t end = length > UINT64_MAX - start ? UINT64_MAX : start + length;
	struct rows rows = {0};
	int error = read_all(fd, &rows, start, end, sync);

	if (error) {
		free(rows.at);
		return error;
	}
	*out = rows.at;
	return (int64_t)rows.count;
}

void seal_extents_free(struct seal_extent *extents)
{
	free(extents);
}

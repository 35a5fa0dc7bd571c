/* What an XFS inode has: its blocks, and the extents of its forks, as bulkstat reads them at one moment. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "sealsvc/files.h"

#define CORE 176       /* bytes of a version 3 inode before its forks (struct xfs_dinode) */
#define RECORD 16      /* bytes of an extent's record (struct xfs_bmbt_rec) */
#define LEAF_HEADER 72 /* of a block of the extent tree, with CRC (XFS_BMBT_BLOCK_LEN) */
#define SECTOR 512

/* struct xfs_bstime, xfs_bstat and xfs_fsop_bulkreq (fs/xfs/libxfs/xfs_fs.h). */
struct bulk_time {
	long seconds;
	int32_t nanoseconds;
};

struct bulk_row {
	uint64_t inode;
	uint16_t mode, links;
	uint32_t uid, gid, device;
	int32_t block_size;
	int64_t size;
	struct bulk_time accessed, modified, changed;
	int64_t blocks;
	uint32_t flags;
	int32_t extent_size, extents;
	uint32_t generation;
	uint16_t project_low, fork_offset, project_high, sick, checked;
	uint8_t pad[2];
	uint32_t cow_extent_size, event_mask;
	uint16_t event_state, attribute_extents;
};
_Static_assert(offsetof(struct bulk_row, blocks) == 88, "as the kernel lays it out");
_Static_assert(sizeof(struct bulk_row) == 136, "as the kernel lays it out");

struct bulk_request {
	uint64_t *inode;
	int32_t count;
	void *rows;
	int32_t *found;
};

#define XFS_FSBULKSTAT_SINGLE _IOWR('X', 102, struct bulk_request)

int seal_xfs_blocks(int fd, struct seal_xfs_blocks *out)
{
	struct seal_xfs_geometry geometry;
	struct bulk_row row;
	struct stat st;
	uint64_t inode, fork, per_leaf;
	int32_t found = 0;
	struct bulk_request request = {&inode, 1, &row, &found};
	int error = seal_xfs_geometry(fd, &geometry);

	if (error)
		return error;
	if (fstat(fd, &st) < 0)
		return -errno;
	inode = st.st_ino;
	if (ioctl(fd, XFS_FSBULKSTAT_SINGLE, &request) < 0)
		return -errno;
	fork = row.fork_offset ? row.fork_offset : geometry.inode_size - CORE;
	per_leaf = ((uint64_t)row.block_size - LEAF_HEADER) / RECORD;
	out->bytes = (uint64_t)row.blocks * (uint64_t)row.block_size;
	out->metadata = row.attribute_extents;
	out->metadata_most = 0;
	/* As long as the records fit into the inode there is no tree (xfs_bmap_wants_extents). Its blocks are
	 * at least half full, but for one that is alone below the root. */
	if ((uint64_t)row.extents * RECORD > fork) {
		out->metadata += ((uint64_t)row.extents + per_leaf - 1) / per_leaf;
		out->metadata_most = 4 * ((uint64_t)row.extents / per_leaf + 1);
	}
	out->metadata *= (uint64_t)row.block_size;
	out->metadata_most *= (uint64_t)row.block_size;
	if (row.attribute_extents) /* of any length */
		out->metadata_most = UINT64_MAX;
	out->changed = (int64_t)row.changed.seconds * 1000000000 + row.changed.nanoseconds;
	return 0;
}

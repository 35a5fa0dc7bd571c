/* The tripwire at the functions of XFS that change which blocks the data fork's offsets have.
 *
 * A mapped block leaves its offset by xfs_bmap_del_extent_real() alone (truncation, punch, the end of
 * CoW, remapping, exchange), by the shifts, by a swap of whole forks, or by a repair; all hold the inode's
 * ILOCK (fs/xfs/libxfs/xfs_bmap.c, xfs_bmap_util.c, scrub/bmap_repair.c; v6.1 to v7.3). What maps
 * (xfs_bmapi_write, xfs_bmapi_remap) does so where nothing is mapped, or turns unwritten into written. */
#include "trip.h"

char licence[] SEC("license") = "Dual MIT/GPL";

#define ATTR_FORK (1u << 2) /* XFS_BMAPI_ATTRFORK */
#define DATA_FORK 0	    /* XFS_DATA_FORK */

struct xfs_inode {
	struct inode i_vnode;
} __attribute__((preserve_access_index));

struct xfs_bmbt_irec {
	uint64_t br_startoff;
	uint64_t br_blockcount;
} __attribute__((preserve_access_index));

struct xfs_scrub {
	struct xfs_inode *ip;
} __attribute__((preserve_access_index));

static __always_inline struct inode *vfs_inode(struct xfs_inode *ip)
{
	return (void *)ip + bpf_core_field_offset(struct xfs_inode, i_vnode);
}

static __always_inline void trip(void *ctx, struct xfs_inode *ip, const struct change *change,
				 int64_t result)
{
	tell_trip(ctx, vfs_inode(ip), change, result);
}

/* Nine values: to be traced on x86 since v6.6. */
SEC("fexit/xfs_bmap_del_extent_real")
int BPF_PROG(xfs_del_extent, struct xfs_inode *ip, void *tp, void *cursor, void *cur,
	     struct xfs_bmbt_irec *del, int *flags, int fork, uint32_t how, int result)
{
	struct change change = {SEAL_TRIP_XFS_DEL_EXTENT, !result, 0, 0};

	if (fork != DATA_FORK)
		return 0;
	change.first = BPF_CORE_READ(del, br_startoff);
	change.count = BPF_CORE_READ(del, br_blockcount);
	trip(ctx, ip, &change, result);
	return 0;
}

/* Where that cannot be traced: the range of which this unmaps some, from its end on. */
SEC("fentry/__xfs_bunmapi")
int BPF_PROG(xfs_bunmapi, void *tp, struct xfs_inode *ip, uint64_t start, uint64_t *length,
	     uint32_t flags)
{
	struct change change = {SEAL_TRIP_XFS_BUNMAPI, 0, start, 0};

	if (flags & ATTR_FORK)
		return 0;
	bpf_probe_read_kernel(&change.count, sizeof(change.count), length);
	if (change.count)
		trip(ctx, ip, &change, 0);
	return 0;
}

/* Each moves one extent; in the end all of what lies behind is moved. */

SEC("fentry/xfs_bmap_collapse_extents")
int BPF_PROG(xfs_collapse, void *tp, struct xfs_inode *ip, uint64_t *next, uint64_t shift)
{
	struct change change = {SEAL_TRIP_XFS_COLLAPSE, 0, 0, 0};

	bpf_probe_read_kernel(&change.first, sizeof(change.first), next);
	change.first -= shift;
	trip(ctx, ip, &change, 0);
	return 0;
}

SEC("fexit/xfs_bmap_insert_extents")
int BPF_PROG(xfs_insert, void *tp, struct xfs_inode *ip, uint64_t *next, uint64_t shift, bool *done,
	     uint64_t stop, int result)
{
	struct change change = {SEAL_TRIP_XFS_INSERT, !result, stop, 0};

	trip(ctx, ip, &change, result);
	return 0;
}

SEC("fexit/xfs_swap_extents")
int BPF_PROG(xfs_swap, struct xfs_inode *ip, struct xfs_inode *other, void *request, int result)
{
	struct change change = {SEAL_TRIP_XFS_SWAP, !result, 0, 0};

	trip(ctx, ip, &change, result);
	trip(ctx, other, &change, result);
	return 0;
}

/* A fork that is built anew has the same blocks when nothing was wrong with it. */
SEC("fexit/xrep_bmap")
int BPF_PROG(xfs_repair, struct xfs_scrub *scrub, int fork, bool unwritten, int result)
{
	struct change change = {SEAL_TRIP_XFS_REPAIR, 0, 0, 0};

	if (fork == DATA_FORK)
		trip(ctx, BPF_CORE_READ(scrub, ip), &change, result);
	return 0;
}

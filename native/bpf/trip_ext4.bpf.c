/* The tripwire at the functions of ext4 that change which blocks a file's offsets have.
 *
 * A mapped block leaves its offset by ext4_ext_remove_space() (truncation, punch, collapse), the shift,
 * a swap of extents or of whole inodes, and in files without extents by their two kin; all but the last
 * hold i_data_sem (fs/ext4/extents.c, indirect.c, move_extent.c, ioctl.c; v6.1 to v7.3). What inserts
 * (ext4_ext_insert_extent) does so where nothing is mapped, or splits what is, which moves no block. */
#include "trip.h"

char licence[] SEC("license") = "Dual MIT/GPL";

static __always_inline void trip(void *ctx, struct inode *inode, uint32_t function, int certain,
				 uint64_t first, uint64_t count, int64_t result)
{
	struct change change = {function, certain, first, count};

	tell_trip(ctx, inode, &change, result);
}

/* To and with `end`. */
SEC("fexit/ext4_ext_remove_space")
int BPF_PROG(ext4_remove, struct inode *inode, uint32_t start, uint32_t end, int result)
{
	uint64_t count = (uint64_t)end - start + 1;

	trip(ctx, inode, SEAL_TRIP_EXT4_REMOVE, !result, start, count, result);
	return 0;
}

/* From `start` on, to the left (direction 0) or to the right. */
SEC("fexit/ext4_ext_shift_extents")
int BPF_PROG(ext4_shift, struct inode *inode, void *handle, uint32_t start, uint32_t shift,
	     int direction, int result)
{
	uint64_t first = direction ? start : start - shift;

	trip(ctx, inode, SEAL_TRIP_EXT4_SHIFT, !result, first, 0, result);
	return 0;
}

/* Returns how many blocks it swapped; holes are passed over. Nine values: since v6.6. */
SEC("fexit/ext4_swap_extents")
int BPF_PROG(ext4_swap, void *handle, struct inode *inode, struct inode *other, uint32_t at,
	     uint32_t other_at, uint32_t count, int unwritten, int *error, int swapped)
{
	int certain = swapped == (int)count;

	if (!swapped)
		return 0;
	trip(ctx, inode, SEAL_TRIP_EXT4_SWAP, certain, at, count, swapped);
	trip(ctx, other, SEAL_TRIP_EXT4_SWAP, certain, other_at, count, swapped);
	return 0;
}

/* Where that cannot be traced. */
SEC("fexit/ext4_move_extents")
int BPF_PROG(ext4_move, struct file *file, struct file *other, uint64_t at, uint64_t other_at,
	     uint64_t count, uint64_t *moved, int result)
{
	uint64_t done = 0;

	bpf_probe_read_kernel(&done, sizeof(done), moved);
	if (!done)
		return 0;
	trip(ctx, BPF_CORE_READ(file, f_inode), SEAL_TRIP_EXT4_MOVE, 0, at, count, result);
	trip(ctx, BPF_CORE_READ(other, f_inode), SEAL_TRIP_EXT4_MOVE, 0, other_at, count, result);
	return 0;
}

/* EXT4_IOC_SWAP_BOOT. */
SEC("fexit/swap_inode_data")
int BPF_PROG(ext4_swap_boot, struct inode *inode, struct inode *boot)
{
	trip(ctx, inode, SEAL_TRIP_EXT4_SWAP_BOOT, 1, 0, 0, 0);
	trip(ctx, boot, SEAL_TRIP_EXT4_SWAP_BOOT, 1, 0, 0, 0);
	return 0;
}

/* Files without extents; `end` is behind the last. */

SEC("fexit/ext4_ind_remove_space")
int BPF_PROG(ext4_ind_remove, void *handle, struct inode *inode, uint32_t start, uint32_t end,
	     int result)
{
	if (end > start)
		trip(ctx, inode, SEAL_TRIP_EXT4_IND_REMOVE, !result, start, end - start, result);
	return 0;
}

SEC("fexit/ext4_ind_truncate")
int BPF_PROG(ext4_ind_truncate, void *handle, struct inode *inode)
{
	uint64_t size = BPF_CORE_READ(inode, i_size);
	uint32_t shift = BPF_CORE_READ(inode, i_blkbits) & 31;

	trip(ctx, inode, SEAL_TRIP_EXT4_IND_TRUNCATE, 1, (size + (1ull << shift) - 1) >> shift, 0,
	     0);
	return 0;
}

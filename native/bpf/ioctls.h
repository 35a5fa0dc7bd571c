/* ioctls that exchange extents, and loop devices, which work below every hook: what the hooks do not
 * say about them is read from the caller's memory and descriptors. */
#ifndef SEAL_IOCTLS_H
#define SEAL_IOCTLS_H

#include "notes.h"
#include "numbers.h"

#define S_IFMT 0170000
#define S_IFBLK 0060000
#define LOOP_MAJOR 7

struct move_extent {
	__u32 reserved, donor_fd;
	__u64 orig_start, donor_start, len, moved_len; /* blocks */
};

struct swap_extent { /* the start of struct xfs_swapext */
	__s64 version, target, temporary;
};

static __always_inline uint64_t bytes(uint64_t blocks, uint32_t shift)
{
	return blocks << (shift & 31) >> (shift & 31) == blocks ? blocks << (shift & 31) : 0;
}

/* The inode behind a descriptor of the caller, or 0. Sure only while no other thread can change the
 * table. */
static __always_inline struct inode *inode_behind(int64_t fd)
{
	struct files_struct *files = ((struct task_struct *)bpf_get_current_task_btf())->files;
	struct file **slot, *file = 0;

	if (!files || fd < 0 || fd >= files->fdt->max_fds)
		return 0;
	slot = files->fdt->fd + fd;
	bpf_probe_read_kernel(&file, sizeof(file), slot);
	return file ? BPF_CORE_READ(file, f_inode) : 0;
}

/* Judged as a whole or in part. */
static __always_inline int judge_fd(int64_t fd, struct attempt *a)
{
	struct inode *inode = inode_behind(fd);

	if (!inode)
		return 0;
	a->file.device = BPF_CORE_READ(inode, i_sb, s_dev);
	a->file.inode = BPF_CORE_READ(inode, i_ino);
	a->generation = BPF_CORE_READ(inode, i_generation);
	a->seen = 0;
	return judge(a);
}

static __always_inline long from_user(void *to, uint32_t size, unsigned long from, int may_sleep)
{
	return may_sleep ? bpf_copy_from_user(to, size, (void *)from)
			 : bpf_probe_read_user(to, size, (void *)from);
}

/* Another thread could exchange the descriptors after we looked. No tool that defragments has threads. */
static __always_inline int shares_table(void)
{
	struct files_struct *files = ((struct task_struct *)bpf_get_current_task_btf())->files;

	return files && files->count.counter > 1;
}

static __always_inline int move_extents(struct file *file, unsigned int command, unsigned long from,
					int may_sleep)
{
	struct attempt a = {.op = SEAL_OP_EXCHANGE, .argument = command};
	uint32_t shift = file->f_inode->i_blkbits;
	struct move_extent move;
	int error;

	if (shares_table())
		return ETXTBSY;
	if (from_user(&move, sizeof(move), from, may_sleep))
		return EFAULT;
	attempt_on_file(&a, file);
	a.seen = 0;
	a.length = bytes(move.len, shift);
	a.offset = a.length ? bytes(move.orig_start, shift) : 0;
	error = judge(&a);
	if (error)
		return error;
	a.offset = a.length ? bytes(move.donor_start, shift) : 0;
	return judge_fd((int32_t)move.donor_fd, &a);
}

static __always_inline int swap_extents(unsigned int command, unsigned long from, int may_sleep)
{
	struct attempt a = {.op = SEAL_OP_EXCHANGE, .argument = command};
	struct swap_extent swap;
	int error;

	if (shares_table())
		return ETXTBSY;
	if (from_user(&swap, sizeof(swap), from, may_sleep))
		return EFAULT;
	error = judge_fd((int32_t)swap.target, &a);
	return error ? error : judge_fd((int32_t)swap.temporary, &a);
}

static __always_inline int exchange_boot(struct file *file, unsigned int command)
{
	struct attempt a = {.op = SEAL_OP_EXCHANGE, .argument = command};

	attempt_on_file(&a, file);
	a.seen = 0;
	return judge(&a);
}

static __always_inline int set_up_loop(struct file *file, unsigned int command, unsigned long from,
				       int may_sleep)
{
	struct attempt a = {.op = SEAL_OP_HIDDEN, .argument = command};
	int32_t fd = (int32_t)from;

	if ((file->f_inode->i_mode & S_IFMT) != S_IFBLK ||
	    file->f_inode->i_rdev >> 20 != LOOP_MAJOR)
		return 0;
	if (NUMBER(command) == LOOP_CONFIGURE && from_user(&fd, sizeof(fd), from, may_sleep))
		return EFAULT;
	return judge_fd(fd, &a);
}

static __always_inline int ioctl(struct file *file, unsigned int command, unsigned long argument,
				 int may_sleep)
{
	struct seal_bpf_control *c = control();

	switch (NUMBER(command)) {
	case EXT4_MOVE_EXT:
	case EXT4_SWAP_BOOT:
	case XFS_SWAPEXT:
	case XFS_EXCHANGE_RANGE:
	case XFS_COMMIT_RANGE:
		enter_loose(file, LOOSE_IOCTL, 0);
		break;
	case LOOP_SET_FD:
	case LOOP_CHANGE_FD:
	case LOOP_CONFIGURE:
		break;
	default:
		return 0;
	}
	if (!c || !c->entries)
		return 0;
	switch (NUMBER(command)) {
	case EXT4_MOVE_EXT:
		return refusal(move_extents(file, command, argument, may_sleep));
	case EXT4_SWAP_BOOT:
		return refusal(exchange_boot(file, command));
	case XFS_SWAPEXT:
		return refusal(swap_extents(command, argument, may_sleep));
	case LOOP_SET_FD:
	case LOOP_CHANGE_FD:
	case LOOP_CONFIGURE:
		return refusal(set_up_loop(file, command, argument, may_sleep));
	}
	return 0; /* exchange and commit ask remap_verify_area() about both files */
}

#endif

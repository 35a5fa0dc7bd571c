/* ioctls that exchange extents, and loop devices, which work below every hook: what the hooks do not
 * say about them is read from the caller's memory and descriptors. */
#ifndef SEAL_IOCTLS_H
#define SEAL_IOCTLS_H

#include "notes.h"
#include "numbers.h"

#define S_IFMT 0170000
#define S_IFBLK 0060000
#define LOOP_MAJOR 7

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

#define DESCRIPTORS (1u << 16) /* of the caller, that are looked at */

struct search {
	struct seal_bpf_file file;
	uint32_t generation;
	uint32_t found;
};

static long look_at_descriptor(uint32_t fd, struct search *search)
{
	struct inode *inode = inode_behind(fd);
	struct seal_bpf_file key;

	if (!inode)
		return 0;
	key.device = BPF_CORE_READ(inode, i_sb, s_dev);
	key.inode = BPF_CORE_READ(inode, i_ino);
	if (!bpf_map_lookup_elem(&seal_files, &key))
		return 0;
	search->file = key;
	search->generation = BPF_CORE_READ(inode, i_generation);
	search->found = 1;
	return 1;
}

/* Another thread could exchange the descriptors after we looked. No tool that defragments has threads. */
static __always_inline int shares_table(struct files_struct *files)
{
	return files->count.counter > 1;
}

/* An ioctl whose argument names a file by a descriptor in user memory, where others may change it
 * between our reading and the kernel's. So it may be about any file that the caller has open: if one
 * of these is sealed, all of it is judged. */
static __always_inline int judge_descriptors(uint32_t op, unsigned int command)
{
	struct files_struct *files = ((struct task_struct *)bpf_get_current_task_btf())->files;
	struct attempt a = {.op = op, .argument = command};
	struct search search = {.found = 0};
	uint32_t count;

	if (!files)
		return 0;
	count = files->fdt->max_fds;
	if (shares_table(files) || count > DESCRIPTORS)
		return ETXTBSY;
	bpf_loop(count, look_at_descriptor, &search, 0);
	if (!search.found)
		return 0;
	a.file = search.file;
	a.generation = search.generation;
	return judge(&a);
}

static __always_inline int move_extents(struct file *file, unsigned int command)
{
	struct attempt a = {.op = SEAL_OP_EXCHANGE, .argument = command};
	int error;

	attempt_on_file(&a, file);
	a.seen = 0;
	error = judge(&a);
	return error ? error : judge_descriptors(SEAL_OP_EXCHANGE, command);
}

static __always_inline int exchange_boot(struct file *file, unsigned int command)
{
	struct attempt a = {.op = SEAL_OP_EXCHANGE, .argument = command};

	attempt_on_file(&a, file);
	a.seen = 0;
	return judge(&a);
}

/* LOOP_SET_FD and LOOP_CHANGE_FD name the file by a register, LOOP_CONFIGURE in user memory. */
static __always_inline int set_up_loop(struct file *file, unsigned int command)
{
	if ((file->f_inode->i_mode & S_IFMT) != S_IFBLK ||
	    file->f_inode->i_rdev >> 20 != LOOP_MAJOR)
		return 0;
	return judge_descriptors(SEAL_OP_HIDDEN, command);
}

static __always_inline int ioctl(struct file *file, unsigned int command)
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
		return refusal(move_extents(file, command));
	case EXT4_SWAP_BOOT:
		return refusal(exchange_boot(file, command));
	case XFS_SWAPEXT:
		return refusal(judge_descriptors(SEAL_OP_EXCHANGE, command));
	case LOOP_SET_FD:
	case LOOP_CHANGE_FD:
	case LOOP_CONFIGURE:
		return refusal(set_up_loop(file, command));
	}
	return 0; /* exchange and commit ask remap_verify_area() about both files */
}

#endif

/* The programs: which operations the kernel is asked about, and where it is told no.
 *
 * An LSM hook can refuse but does not always know the operation: security_file_permission() is asked
 * for write, whatever writes. So fentry programs judge with the arguments at hand and leave a note,
 * which lsm/file_permission turns into the refusal. Without a note it costs two loads.
 *
 * A fentry program that another task preempted on this CPU in the very same program is skipped by the
 * kernel (bpf_prog_info.recursion_misses counts it), only where the kernel itself is preemptible. */
#include "judge.h"

#include <bpf/bpf_tracing.h>

char licence[] SEC("license") = "Dual MIT/GPL";

#define ATTR_SIZE (1u << 3)
#define FMODE_EXEC (1u << 5) /* struct file.f_flags, __FMODE_EXEC */
#define RWF_ATOMIC 0x40	     /* since v6.11 */
#define FALLOC_KEEP_SIZE 0x01
#define FALLOC_PUNCH_HOLE 0x02
#define FALLOC_COLLAPSE_RANGE 0x08
#define FALLOC_ZERO_RANGE 0x10
#define FALLOC_INSERT_RANGE 0x20
#define FALLOC_UNSHARE_RANGE 0x40
#define FALLOC_WRITE_ZEROES 0x80 /* since v6.17 */
#define S_IFMT 0170000
#define S_IFBLK 0060000
#define LOOP_MAJOR 7

/* ioctls by type and number: their sizes differ between architectures. */
#define NUMBER(command) ((command)&0xffff)
#define EXT4_MOVE_EXT 0x660f
#define EXT4_SWAP_BOOT 0x6611
#define XFS_SWAPEXT 0x586d
#define XFS_EXCHANGE_RANGE 0x5881
#define XFS_COMMIT_RANGE 0x5883
#define LOOP_SET_FD 0x4c00
#define LOOP_CHANGE_FD 0x4c06
#define LOOP_CONFIGURE 0x4c0a

enum { IORING_OP_WRITE_FIXED = 5, IORING_OP_WRITE = 23 };

struct move_extent {
	__u32 reserved, donor_fd;
	__u64 orig_start, donor_start, len, moved_len; /* blocks */
};

struct swap_extent { /* the start of struct xfs_swapext */
	__s64 version, target, temporary;
};

/* Operations under way: a seal that is being made waits for those that passed before it was there. */

static __always_inline void enter(const struct seal_bpf_file *file)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), *file};
	struct seal_bpf_since value = {bpf_ktime_get_ns(), file->device};
	struct seal_bpf_control *c = control();

	if (bpf_map_update_elem(&seal_underway, &key, &value, BPF_ANY) && c)
		__sync_fetch_and_add(&c->untracked, 1);
}

static __always_inline void drop_note(void)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();

	if (c && c->notes && !bpf_map_delete_elem(&seal_notes, &task))
		__sync_fetch_and_add(&c->notes, -1);
}

/* Under this thread's number alone, for what does not know its file when it ends. `kind` keeps an ioctl
 * and an asynchronous write apart. */
enum loose { LOOSE_IOCTL, LOOSE_WRITE };

static __always_inline void enter_loose(struct file *file, enum loose kind)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), {0, kind}};
	struct seal_bpf_since value = {bpf_ktime_get_ns(), file->f_inode->i_sb->s_dev};
	struct seal_bpf_control *c = control();

	if (!c)
		return;
	__sync_fetch_and_add(&c->loose, 1);
	if (!bpf_map_update_elem(&seal_underway, &key, &value, BPF_NOEXIST))
		return;
	__sync_fetch_and_add(&c->loose, -1);
	if (bpf_map_update_elem(&seal_underway, &key, &value, BPF_ANY))
		__sync_fetch_and_add(&c->untracked, 1);
}

static __always_inline void leave_loose(enum loose kind)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), {0, kind}};
	struct seal_bpf_control *c = control();

	if (c && c->loose && !bpf_map_delete_elem(&seal_underway, &key))
		__sync_fetch_and_add(&c->loose, -1);
}

static __always_inline void leave(struct file *file)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), {0, 0}};

	key.file.device = file->f_inode->i_sb->s_dev;
	key.file.inode = file->f_inode->i_ino;
	bpf_map_delete_elem(&seal_underway, &key);
	drop_note();
}

/* Notes */

static __always_inline int noted(void)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();

	return c && c->notes && bpf_map_lookup_elem(&seal_notes, &task);
}

static __always_inline void note(const struct attempt *a)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();
	struct note value = {a->file, judge(a)};

	if (!value.error || !c)
		return;
	/* Counted before it is there: file_permission must not overlook it. */
	__sync_fetch_and_add(&c->notes, 1);
	if (bpf_map_update_elem(&seal_notes, &task, &value, BPF_NOEXIST)) {
		__sync_fetch_and_add(&c->notes, -1);
		bpf_map_update_elem(&seal_notes, &task, &value, BPF_ANY);
	}
}

SEC("lsm/file_permission")
int BPF_PROG(file_permission, struct file *file, int mask, int earlier)
{
	struct seal_bpf_control *c = control();
	struct note *n;
	uint64_t task;

	if (earlier || !c || !c->notes)
		return earlier;
	task = bpf_get_current_pid_tgid();
	n = bpf_map_lookup_elem(&seal_notes, &task);
	if (!n || n->file.inode != file->f_inode->i_ino ||
	    n->file.device != file->f_inode->i_sb->s_dev)
		return 0;
	return refusal(n->error);
}

/* fallocate; also MADV_REMOVE and the RESVSP family of XFS, which come through it */

static __always_inline uint32_t fallocate_op(int mode)
{
	switch (mode & ~FALLOC_KEEP_SIZE) {
	case 0:
		return SEAL_OP_ALLOCATE;
	case FALLOC_PUNCH_HOLE:
		return SEAL_OP_PUNCH;
	case FALLOC_ZERO_RANGE:
		return SEAL_OP_ZERO;
	case FALLOC_WRITE_ZEROES:
		return SEAL_OP_WRITE_ZEROES;
	case FALLOC_UNSHARE_RANGE:
		return SEAL_OP_UNSHARE;
	case FALLOC_COLLAPSE_RANGE:
		return SEAL_OP_COLLAPSE;
	case FALLOC_INSERT_RANGE:
		return SEAL_OP_INSERT;
	}
	return SEAL_OP_HIDDEN; /* newer than this: may do anything from there on */
}

SEC("fentry/vfs_fallocate")
int BPF_PROG(fallocate, struct file *file, int mode, loff_t offset, loff_t length)
{
	struct attempt a = {.offset = offset, .length = length, .argument = mode};

	attempt_on_file(&a, file);
	a.op = fallocate_op(mode);
	enter(&a.file);
	note(&a);
	return 0;
}

SEC("fexit/vfs_fallocate")
int BPF_PROG(fallocate_end, struct file *file, int mode, loff_t offset, loff_t length, long result)
{
	leave(file);
	return 0;
}

/* copy_file_range, clone, dedupe: both files */

static __always_inline void pair(uint32_t op, struct file *in, loff_t in_at, struct file *out,
				 loff_t out_at, loff_t length, uint32_t flags)
{
	struct attempt a = {.offset = in_at, .length = length, .argument = flags, .op = op};
	struct attempt b = {.offset = out_at, .length = length, .argument = flags, .op = op};

	attempt_on_file(&a, in);
	attempt_on_file(&b, out);
	enter(&a.file);
	enter(&b.file);
	note(&a);
	if (!noted())
		note(&b);
}

SEC("fentry/vfs_copy_file_range")
int BPF_PROG(copy, struct file *in, loff_t in_at, struct file *out, loff_t out_at, size_t length,
	     unsigned int flags)
{
	if (length) /* here 0 means nothing, not everything */
		pair(SEAL_OP_COPY, in, in_at, out, out_at, length, flags);
	return 0;
}

SEC("fexit/vfs_copy_file_range")
int BPF_PROG(copy_end, struct file *in, loff_t in_at, struct file *out, loff_t out_at,
	     size_t length, unsigned int flags, ssize_t result)
{
	leave(in);
	leave(out);
	return 0;
}

SEC("fentry/vfs_clone_file_range")
int BPF_PROG(clone, struct file *in, loff_t in_at, struct file *out, loff_t out_at, loff_t length,
	     unsigned int flags)
{
	pair(SEAL_OP_CLONE, in, in_at, out, out_at, length, flags);
	return 0;
}

SEC("fexit/vfs_clone_file_range")
int BPF_PROG(clone_end, struct file *in, loff_t in_at, struct file *out, loff_t out_at,
	     loff_t length, unsigned int flags, loff_t result)
{
	leave(in);
	leave(out);
	return 0;
}

SEC("fentry/vfs_dedupe_file_range_one")
int BPF_PROG(dedupe, struct file *in, loff_t in_at, struct file *out, loff_t out_at, loff_t length,
	     unsigned int flags)
{
	pair(SEAL_OP_DEDUPE, in, in_at, out, out_at, length, flags);
	return 0;
}

SEC("fexit/vfs_dedupe_file_range_one")
int BPF_PROG(dedupe_end, struct file *in, loff_t in_at, struct file *out, loff_t out_at,
	     loff_t length, unsigned int flags, loff_t result)
{
	leave(in);
	leave(out);
	return 0;
}

/* All remapping asks here about each file. It is the only place where both files of
 * XFS_IOC_EXCHANGE_RANGE and the source of FIDEDUPERANGE are known for sure. */
SEC("fentry/remap_verify_area")
int BPF_PROG(remap, struct file *file, loff_t at, loff_t length, bool write)
{
	struct seal_bpf_underway exchange = {bpf_get_current_pid_tgid(), {0, LOOSE_IOCTL}};
	struct attempt a = {.offset = at, .length = length, .op = SEAL_OP_DEDUPE};

	if (noted())
		return 0;
	attempt_on_file(&a, file);
	if (bpf_map_lookup_elem(&seal_underway, &exchange))
		a.op = SEAL_OP_EXCHANGE;
	note(&a);
	return 0;
}

SEC("fexit/remap_verify_area")
int BPF_PROG(remap_end, struct file *file, loff_t at, loff_t length, bool write, int result)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();
	struct note *n = c && c->notes ? bpf_map_lookup_elem(&seal_notes, &task) : 0;

	if (n && n->file.inode == file->f_inode->i_ino)
		drop_note(); /* else it is meant for the other file */
	return 0;
}

/* Atomic writes, which XFS does out of place */

/* The length lies in user memory, where others may change it. But an atomic write is a power of two
 * long and aligned to its length (generic_atomic_write_valid), which bounds it. */
static __always_inline uint64_t longest_atomic(loff_t at)
{
	return at > 0 ? (uint64_t)at & -(uint64_t)at : 0;
}

static __always_inline void atomic_write(struct file *file, loff_t at, uint64_t length,
					 uint32_t flags)
{
	struct attempt a = {.op = SEAL_OP_WRITE_ATOMIC, .argument = flags};

	a.offset = at < 0 ? 0 : at;
	a.length = length ? length : longest_atomic(at);
	attempt_on_file(&a, file);
	note(&a);
}

SEC("fentry/vfs_writev")
int BPF_PROG(writev, struct file *file, const void *vector, unsigned long count, loff_t *at,
	     rwf_t flags)
{
	loff_t offset = -1;

	if (!(flags & RWF_ATOMIC))
		return 0;
	bpf_probe_read_kernel(&offset, sizeof(offset), at);
	enter_loose(file, LOOSE_WRITE);
	atomic_write(file, offset, 0, flags);
	return 0;
}

SEC("fexit/vfs_writev")
int BPF_PROG(writev_end, struct file *file, const void *vector, unsigned long count, loff_t *at,
	     rwf_t flags, ssize_t result)
{
	if (!(flags & RWF_ATOMIC))
		return 0;
	leave_loose(LOOSE_WRITE);
	drop_note();
	return 0;
}

SEC("fentry/aio_write")
int BPF_PROG(aio, struct kiocb *request, const struct iocb *iocb, bool vectored)
{
	if (!(iocb->aio_rw_flags & RWF_ATOMIC))
		return 0;
	enter_loose(request->ki_filp, LOOSE_WRITE);
	atomic_write(request->ki_filp, iocb->aio_offset, vectored ? 0 : iocb->aio_nbytes,
		     iocb->aio_rw_flags);
	return 0;
}

/* The request may be over by then, and its file gone. */
SEC("fexit/aio_write")
int BPF_PROG(aio_end)
{
	leave_loose(LOOSE_WRITE);
	drop_note();
	return 0;
}

SEC("fentry/io_write")
int BPF_PROG(uring, struct io_kiocb *request)
{
	struct io_rw *rw = (void *)request;
	rwf_t flags = BPF_CORE_READ(rw, flags);
	uint64_t length = 0;

	if (!(flags & RWF_ATOMIC))
		return 0;
	if (request->opcode == IORING_OP_WRITE || request->opcode == IORING_OP_WRITE_FIXED)
		length = BPF_CORE_READ(rw, len);
	enter_loose(request->file, LOOSE_WRITE);
	atomic_write(request->file, BPF_CORE_READ(rw, kiocb.ki_pos), length, flags);
	return 0;
}

SEC("fexit/io_write")
int BPF_PROG(uring_end)
{
	leave_loose(LOOSE_WRITE);
	drop_note();
	return 0;
}

/* truncate, ftruncate, O_TRUNC, through whatever layers */

static __always_inline int setattr(struct dentry *dentry, struct iattr *attributes)
{
	struct attempt a = {.op = SEAL_OP_TRUNCATE};
	struct seal_bpf_control *c = control();
	struct inode *inode;

	if (!c || !c->entries || !(attributes->ia_valid & ATTR_SIZE))
		return 0;
	inode = dentry->d_inode;
	if (!inode)
		return 0;
	a.offset = attributes->ia_size;
	attempt_on_inode(&a, inode);
	return refusal(judge(&a));
}

SEC("lsm/inode_setattr")
int BPF_PROG(setattr_by_idmap, void *idmap, struct dentry *dentry, struct iattr *attributes,
	     int earlier)
{
	return earlier ? earlier : setattr(dentry, attributes);
}

/* Before v6.9 the hook had no idmap. */
SEC("lsm/inode_setattr")
int BPF_PROG(setattr_by_dentry, struct dentry *dentry, struct iattr *attributes, int earlier)
{
	return earlier ? earlier : setattr(dentry, attributes);
}

/* Opens of what is sealed exclusively */

SEC("lsm/file_open")
int BPF_PROG(file_open, struct file *file, int earlier)
{
	struct attempt a = {.argument = file->f_flags};
	struct seal_bpf_control *c = control();

	if (earlier || !c || !c->exclusive)
		return earlier;
	attempt_on_file(&a, file);
	a.op = a.argument & FMODE_EXEC ? SEAL_OP_EXEC : SEAL_OP_OPEN;
	a.seen = 1; /* fanotify sees every open of a file with a mark */
	return refusal(judge(&a));
}

/* ioctls that exchange extents, and loop devices, which work below every hook */

static __always_inline uint64_t bytes(uint64_t blocks, uint32_t shift)
{
	return blocks << (shift & 31) >> (shift & 31) == blocks ? blocks << (shift & 31) : 0;
}

/* The file behind a descriptor of the caller, judged as a whole or in part. Sure only while no other
 * thread can change the table. */
static __always_inline int judge_fd(int64_t fd, struct attempt *a)
{
	struct files_struct *files = ((struct task_struct *)bpf_get_current_task_btf())->files;
	struct file **slot, *file = 0;
	struct inode *inode;

	if (!files || fd < 0 || fd >= files->fdt->max_fds)
		return 0;
	slot = files->fdt->fd + fd;
	bpf_probe_read_kernel(&file, sizeof(file), slot);
	if (!file)
		return 0;
	inode = BPF_CORE_READ(file, f_inode);
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
		enter_loose(file, LOOSE_IOCTL);
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

SEC("lsm.s/file_ioctl")
int BPF_PROG(file_ioctl, struct file *file, unsigned int command, unsigned long argument,
	     int earlier)
{
	return earlier ? earlier : ioctl(file, command, argument, 1);
}

SEC("lsm/file_ioctl_compat")
int BPF_PROG(file_ioctl_compat, struct file *file, unsigned int command, unsigned long argument,
	     int earlier)
{
	return earlier ? earlier : ioctl(file, command, argument, 0);
}

SEC("fexit/__x64_sys_ioctl")
int BPF_PROG(ioctl_end)
{
	leave_loose(LOOSE_IOCTL);
	return 0;
}

SEC("fexit/__ia32_compat_sys_ioctl")
int BPF_PROG(ioctl_compat_end)
{
	leave_loose(LOOSE_IOCTL);
	return 0;
}

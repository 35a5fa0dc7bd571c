/* The programs: which operations the kernel is asked about, and where it is told no.
 *
 * An LSM hook can refuse but does not always know the operation: security_file_permission() is asked
 * for write, whatever writes. So fentry programs judge with the arguments at hand and leave a note,
 * which lsm/file_permission turns into the refusal. Others pay for a few loads.
 *
 * The kernel may skip a fentry program: skipped.h makes up for it. */
#include "ioctls.h"
#include "skipped.h"

#include <bpf/bpf_tracing.h>

char licence[] SEC("license") = "Dual MIT/GPL";

SEC("lsm/file_permission")
int BPF_PROG(file_permission, struct file *file, int mask, int earlier)
{
	struct seal_bpf_control *c = control();
	int64_t error = 0;

	if (earlier || !c)
		return earlier;
	if (may_be_sealed(c, file))
		error = judge_skipped(file, mask);
	if (!error && c->notes | c->blind_until)
		error = read_note(file, mask, c);
	return refusal(error);
}

/* fallocate; also MADV_REMOVE and the RESVSP family of XFS, which come through it */

SEC("fentry/vfs_fallocate")
int BPF_PROG(fallocate, struct file *file, int mode, loff_t offset, loff_t length)
{
	struct attempt a = {.offset = offset, .length = length, .argument = mode};

	attempt_on_file(&a, file);
	a.op = fallocate_op(mode);
	enter(&a.file, MAY_WRITE);
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
	uint64_t both = 0;

	attempt_on_file(&a, in);
	attempt_on_file(&b, out);
	if (a.file.device == b.file.device && a.file.inode == b.file.inode)
		both = MAY_READ;
	enter(&a.file, op == SEAL_OP_DEDUPE ? 0 : MAY_READ);
	enter(&b.file, both | MAY_WRITE);
	/* For the source of a dedupe permission has been asked already. */
	note_for(&a, op == SEAL_OP_DEDUPE ? &b.file : &a.file);
	if (!noted())
		note(&b);
}

SEC("fentry/vfs_copy_file_range")
int BPF_PROG(copy, struct file *in, loff_t in_at, struct file *out, loff_t out_at, size_t length,
	     unsigned int flags)
{
	/* Here a length of 0 means nothing, not everything. */
	pair(length ? SEAL_OP_COPY : SEAL_OP_READ, in, in_at, out, out_at, length, flags);
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

/* Where it is a function of its own, overlayfs copies up by it alone. */
SEC("fentry/do_clone_file_range")
int BPF_PROG(clone_inner, struct file *in, loff_t in_at, struct file *out, loff_t out_at,
	     loff_t length, unsigned int flags)
{
	pair(SEAL_OP_CLONE, in, in_at, out, out_at, length, flags);
	return 0;
}

SEC("fexit/do_clone_file_range")
int BPF_PROG(clone_inner_end, struct file *in, loff_t in_at, struct file *out, loff_t out_at,
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

	enter_loose(file, LOOSE_REMAP, write ? MAY_WRITE : MAY_READ);
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

	leave_loose(LOOSE_REMAP);
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
	enter_loose(file, LOOSE_WRITE, MAY_WRITE);
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
	enter_loose(request->ki_filp, LOOSE_WRITE, MAY_WRITE);
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
	enter_loose(request->file, LOOSE_WRITE, MAY_WRITE);
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

/* ioctls */

SEC("lsm.s/file_ioctl")
int BPF_PROG(file_ioctl, struct file *file, unsigned int command, unsigned long argument,
	     int earlier)
{
	return earlier ? earlier : ioctl(file, command);
}

SEC("lsm/file_ioctl_compat")
int BPF_PROG(file_ioctl_compat, struct file *file, unsigned int command, unsigned long argument,
	     int earlier)
{
	return earlier ? earlier : ioctl(file, command);
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

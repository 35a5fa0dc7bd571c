/* What no program has seen.
 *
 * The kernel skips a fentry program on a CPU where a task that was preempted is inside it
 * (bpf_prog_info.recursion_misses counts that); an LSM program it never skips. So where a system call
 * is under way whose program leaves a trace, and lsm/file_permission finds none, the program was
 * skipped, and what it left undone is done here: to judge, with what the call's registers tell, and to
 * list the operation as under way.
 *
 * Kernel threads (nfsd) are in no system call, asynchronous atomic writes are not to be told from others,
 * and copies ask more than once before v6.8: for these a skip remains a gap. One that is
 * under way when its file is sealed first is not listed, if skipped: a grant waits for the inode's lock,
 * which it has taken by then. */
#ifndef SEAL_SKIPPED_H
#define SEAL_SKIPPED_H

#include "notes.h"
#include "numbers.h"

#define PF_IO_WORKER 0x10
#define PF_KTHREAD 0x00200000
#define TS_COMPAT 2 /* struct thread_info.status */
#define X32 0x40000000

static __always_inline uint32_t traced_by_ioctl(unsigned long command, int mask)
{
	switch (NUMBER(command)) {
	case FICLONE:
	case FICLONERANGE:
		return SEAL_BPF_TRACED_CLONE | SEAL_BPF_TRACED_REMAP;
	case FIDEDUPERANGE: /* asks about its source before it looks at pairs */
		return (mask & MAY_WRITE ? SEAL_BPF_TRACED_DEDUPE : 0) | SEAL_BPF_TRACED_REMAP;
	case XFS_EXCHANGE_RANGE:
	case XFS_COMMIT_RANGE:
		return SEAL_BPF_TRACED_REMAP;
	case XFS_RESVSP:
	case XFS_UNRESVSP:
	case XFS_RESVSP64:
	case XFS_UNRESVSP64:
	case XFS_ZERO_RANGE:
		return SEAL_BPF_TRACED_FALLOCATE;
	}
	return 0;
}

static __always_inline uint32_t traced_by_worker(struct task_struct *task)
{
	struct io_worker *worker = task->worker_private;
	struct io_wq_work *work = 0;
	struct io_kiocb *request;

	if (bpf_core_type_exists(struct io_worker) && worker)
		work = BPF_CORE_READ(worker, cur_work);
	if (!work)
		return 0;
	request = (void *)work - bpf_core_field_offset(struct io_kiocb, work);
	switch (BPF_CORE_READ(request, opcode)) {
	case IORING_OP_FALLOCATE:
	case IORING_OP_MADVISE:
		return SEAL_BPF_TRACED_FALLOCATE;
	}
	return 0;
}

/* The kernel takes the number of a call as an int, and ignores the upper half of the register
 * (arch/x86/entry/common.c, do_syscall_64). */
static __always_inline uint32_t number_of_call(const struct pt_regs *regs)
{
	return (uint32_t)regs->orig_ax;
}

/* Numbers of arch/x86/entry/syscalls/. */
static __always_inline uint32_t traced_by_call32(const struct pt_regs *regs, int mask)
{
	switch (number_of_call(regs)) {
	case 54:
		return traced_by_ioctl(regs->cx, mask);
	case 219: /* madvise */
	case 440: /* process_madvise */
	case 324:
		return SEAL_BPF_TRACED_FALLOCATE;
	case 377:
		return SEAL_BPF_TRACED_COPY;
	case 379: /* pwritev2 */
		return regs->bp & RWF_ATOMIC ? SEAL_BPF_TRACED_WRITEV : 0;
	}
	return 0;
}

#define NR_FALLOCATE 285

#define BY_FILE                                                                                    \
	(SEAL_BPF_TRACED_FALLOCATE | SEAL_BPF_TRACED_COPY | SEAL_BPF_TRACED_CLONE |                \
	 SEAL_BPF_TRACED_DEDUPE)

/* By far the most calls: read, write, pread64, pwrite64, readv and writev. A 32-bit caller's calls of
 * these numbers ask for nothing. */
static __always_inline int is_plain(uint32_t call)
{
	return call <= 1 || (call >= 17 && call <= 20);
}

/* The programs that must have left a trace. */
static __always_inline uint32_t traced_by(struct task_struct *task, const struct pt_regs *regs,
					  int mask)
{
	uint32_t flags = task->flags & (PF_IO_WORKER | PF_KTHREAD);

	if (!flags && is_plain(number_of_call(regs)))
		return 0;
	if (flags & PF_IO_WORKER)
		return traced_by_worker(task);
	if (flags & PF_KTHREAD)
		return 0;
	if (task->thread_info.status & TS_COMPAT)
		return traced_by_call32(regs, mask);
	switch (number_of_call(regs) & ~X32) {
	case 16:
	case 514: /* x32 */
		return traced_by_ioctl(regs->si, mask);
	case 28:  /* madvise */
	case 440: /* process_madvise */
	case NR_FALLOCATE:
		return SEAL_BPF_TRACED_FALLOCATE;
	case 326:
		return SEAL_BPF_TRACED_COPY;
	case 328: /* pwritev2 */
	case 547:
		return regs->r9 & RWF_ATOMIC ? SEAL_BPF_TRACED_WRITEV : 0;
	}
	return 0;
}

/* The end of an operation may be skipped as well: what it leaves is no trace of the next one. */
static __always_inline int has_trace(const struct seal_bpf_file *file, int mask)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), *file};
	struct seal_bpf_since *since = bpf_map_lookup_elem(&seal_underway, &key);
	uint64_t asked;

	if (!since)
		return 0;
	if (since->set != seal_set.id)
		return 1; /* theirs to look at */
	asked = since->expected & (uint64_t)mask;
	since->expected &= ~(uint64_t)mask;
	return !!asked;
}

static __always_inline uint32_t traces(const struct seal_bpf_file *file, uint32_t of, int mask)
{
	struct seal_bpf_file remap = {0, LOOSE_REMAP}, write = {0, LOOSE_WRITE};
	uint32_t found = 0;

	if (of & BY_FILE && has_trace(file, mask))
		found |= of & BY_FILE;
	if (of & SEAL_BPF_TRACED_REMAP && has_trace(&remap, mask))
		found |= SEAL_BPF_TRACED_REMAP;
	if (of & SEAL_BPF_TRACED_WRITEV && has_trace(&write, mask))
		found |= SEAL_BPF_TRACED_WRITEV;
	return found;
}

/* What the program that was skipped would have listed. A lone remapping is listed as an ioctl, or soon
 * as a pair. */
static __always_inline void list(struct file *file, const struct seal_bpf_file *key,
				 uint32_t skipped)
{
	if (skipped & BY_FILE)
		enter(key, 0);
	if (skipped & SEAL_BPF_TRACED_WRITEV)
		enter_loose(file, LOOSE_WRITE, 0);
}

/* Most files are not, and only for the others it is worth a look at the system call. */
static __always_inline int may_be_sealed(const struct seal_bpf_control *c, struct file *file)
{
	unsigned long bit = file->f_inode->i_ino & (SEAL_BPF_BITS - 1);

	return c->sealed[bit / 64] >> bit % 64 & 1;
}

/* 0 or the errno. */
static __always_inline int judge_skipped(struct file *file, int mask)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	uint32_t traced = traced_by(task, regs, mask) & (uint32_t)seal_set.traced, skipped;
	struct attempt a = {.op = SEAL_OP_HIDDEN};

	if (!traced) /* most reads and writes */
		return 0;
	attempt_on_file(&a, file);
	skipped = traced & ~traces(&a.file, traced, mask);
	if (!skipped)
		return 0;
	list(file, &a.file, skipped);
	if (skipped != traced) /* a clone is judged as such and as a remapping */
		return 0;
	/* The 64-bit call: no other one of this number is traced. */
	if (regs->orig_ax == NR_FALLOCATE) {
		a.argument = regs->si;
		a.op = fallocate_op((int)regs->si);
		a.offset = regs->dx;
		a.length = regs->r10;
	}
	return judge(&a);
}

#endif

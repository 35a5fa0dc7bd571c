#include "sealsvc/operation.h"

#include <string.h>

#define BIT(op) (UINT64_C(1) << (op))
#define OPENS (BIT(SEAL_OP_OPEN) | BIT(SEAL_OP_OPEN_TRUNC))
#define WRITES (BIT(SEAL_OP_WRITE) | BIT(SEAL_OP_WRITE_ATOMIC))
#define FALLOCATES                                                                                 \
	(BIT(SEAL_OP_ALLOCATE) | BIT(SEAL_OP_PUNCH) | BIT(SEAL_OP_ZERO) |                          \
	 BIT(SEAL_OP_WRITE_ZEROES) | BIT(SEAL_OP_UNSHARE) | BIT(SEAL_OP_COLLAPSE) |                \
	 BIT(SEAL_OP_INSERT))

/* The function that asks fanotify, for whatever task: a system call, io_uring, AIO, nfsd, a kernel
 * thread. Names of all versions since 6.14. `among`: the registers of a plain system call tell more. */
static const struct {
	const char *name;
	int op;
	uint64_t among;
} functions[] = {
	/* These read. */
	{"vfs_read", SEAL_OP_READ, 0},
	{"vfs_readv", SEAL_OP_READ, 0},
	{"kernel_read", SEAL_OP_READ, 0},
	{"__kernel_read", SEAL_OP_READ, 0},
	{"vfs_iter_read", SEAL_OP_READ, 0},
	{"vfs_iocb_iter_read", SEAL_OP_READ, 0},
	{"aio_read", SEAL_OP_READ, 0},
	{"__io_read", SEAL_OP_READ, 0},
	{"io_read", SEAL_OP_READ, 0},
	{"nfsd_splice_read", SEAL_OP_READ, 0},
	{"vm_mmap_pgoff", SEAL_OP_MMAP, 0},
	/* These write, and none of their callers can ask for RWF_ATOMIC: read(2)'s kin have no flags, and
	 * those in the kernel pass on no more than IOCB_DSYNC and the like (fs/backing-file.c,
	 * fs/nfsd/vfs.c, fs/cachefiles/io.c). sendfile(2) and splice(2) read one file and write another. */
	{"vfs_write", SEAL_OP_WRITE, 0},
	{"kernel_write", SEAL_OP_WRITE, 0},
	{"__kernel_write", SEAL_OP_WRITE, 0},
	{"__kernel_write_iter", SEAL_OP_WRITE, 0},
	{"vfs_iter_write", SEAL_OP_WRITE, 0},
	{"vfs_iocb_iter_write", SEAL_OP_WRITE, 0},
	{"do_sendfile", SEAL_OP_WRITE, 0},
	{"do_splice", SEAL_OP_WRITE, 0},
	/* Flags of these are in an argument, or in user memory. */
	{"vfs_writev", SEAL_OP_WRITE_UNKNOWN, WRITES},
	{"aio_write", SEAL_OP_WRITE_UNKNOWN, 0},
	{"io_write", SEAL_OP_WRITE_UNKNOWN, 0},
	/* These change maps. */
	{"vfs_truncate", SEAL_OP_TRUNCATE, 0},
	{"do_truncate", SEAL_OP_TRUNCATE, 0},
	{"do_ftruncate", SEAL_OP_TRUNCATE, 0},
	{"do_sys_ftruncate", SEAL_OP_TRUNCATE, 0},
	{"vfs_clone_file_range", SEAL_OP_CLONE, 0},
	{"do_clone_file_range", SEAL_OP_CLONE, 0},
	{"vfs_dedupe_file_range", SEAL_OP_DEDUPE, 0},
	{"vfs_dedupe_file_range_one", SEAL_OP_DEDUPE, 0},
	{"vfs_copy_file_range", SEAL_OP_COPY, 0},
	{"xfs_exchange_range", SEAL_OP_EXCHANGE, 0},
	{"vfs_fallocate", SEAL_OP_HIDDEN, FALLOCATES},
};

static int is(const struct seal_stack *stack, unsigned at, const char *name)
{
	return at < stack->count && strcmp(stack->frame[at], name) == 0;
}

static int begins(const struct seal_stack *stack, unsigned at, const char *with)
{
	return at < stack->count && strncmp(stack->frame[at], with, strlen(with)) == 0;
}

/* The frame behind those of fanotify and of the hook that called it; `count` when the task does not
 * wait for fanotify at all. */
static unsigned asking_function(const struct seal_stack *stack)
{
	unsigned at = 0;

	if (!begins(stack, 0, "fanotify_"))
		return stack->count;
	while (begins(stack, at, "fanotify_") || begins(stack, at, "fsnotify") ||
	       begins(stack, at, "__fsnotify") || begins(stack, at, "security_"))
		at++;
	if (is(stack, at, "rw_verify_area") || is(stack, at, "remap_verify_area"))
		at++;
	return at;
}

/* Is it one of the functions above that stands there? */
static int judge_function(const struct seal_stack *stack, unsigned at, struct seal_operation *out,
			  uint64_t *among)
{
	*among = 0;
	for (unsigned i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
		if (!is(stack, at, functions[i].name))
			continue;
		out->op = functions[i].op;
		/* The advice that frees is the only one that calls it (mm/madvise.c). */
		if (functions[i].among == FALLOCATES && begins(stack, at + 1, "madvise_"))
			out->op = SEAL_OP_REMOVE;
		else if (functions[i].among && seal_stack_is_plain_call(stack, at + 1))
			*among = functions[i].among;
		return 1;
	}
	return 0;
}

/* Truncation inside an open comes from the flags that do_filp_open() and its kin got (fs/namei.c,
 * do_open), so that they must be known, and stand in a register: openat2(2) and io_uring have them in
 * memory. A core dump truncates by itself; an overlay, or ecryptfs, that opens the file beneath
 * truncates it later without a word to fanotify. Execution has fixed flags. nfsd opens without
 * truncating; so does ksmbd, which calls vfs_truncate() afterwards where a client asks for it
 * (fs/smb/server/smb2pdu.c, smb2_create_truncate). */
static uint64_t judge_open(const struct seal_stack *stack, unsigned at, struct seal_operation *out)
{
	if (!is(stack, at++, "do_dentry_open"))
		return 0;
	if (is(stack, at, "vfs_open"))
		at++;
	if (is(stack, at, "dentry_open")) {
		if (begins(stack, at + 1, "nfsd") || begins(stack, at + 1, "__nfsd") ||
		    is(stack, at + 1, "smb2_open"))
			out->op = SEAL_OP_OPEN;
		return 0;
	}
	while (is(stack, at, "do_open") || is(stack, at, "path_openat"))
		at++;
	if (!is(stack, at, "do_filp_open") && !is(stack, at, "do_file_open_root"))
		return 0;
	at++;
	if (is(stack, at, "do_open_execat")) {
		out->op = SEAL_OP_EXEC;
		return 0;
	}
	if (is(stack, at, "file_open_root"))
		at++;
	return seal_stack_is_plain_call(stack, at) ? OPENS : 0;
}

uint64_t seal_operation_judge(const struct seal_event *event, const struct seal_stack *stack,
			      struct seal_operation *out)
{
	uint64_t among;

	memset(out, 0, sizeof(*out));
	out->tid = event->tid;
	out->op = event->is_open ? SEAL_OP_OPEN_HIDDEN : SEAL_OP_HIDDEN;
	out->offset = event->has_range ? event->offset : 0;
	out->length = event->has_range ? event->length : 0;
	out->syscall = -1;
	if (stack->state != SEAL_TASK_BLOCKED)
		return 0;
	if (event->is_open)
		return judge_open(stack, asking_function(stack), out);
	judge_function(stack, asking_function(stack), out, &among);
	return among;
}

int seal_operation_is_proven(const struct seal_operation *operation, uint64_t among)
{
	return among || (operation->op != SEAL_OP_HIDDEN && operation->op != SEAL_OP_OPEN_HIDDEN &&
			 operation->op != SEAL_OP_WRITE_UNKNOWN);
}

int seal_stack_is_same(const struct seal_stack *one, const struct seal_stack *other)
{
	if (one->state != other->state || one->count != other->count)
		return 0;
	for (unsigned i = 0; i < one->count; i++)
		if (strcmp(one->frame[i], other->frame[i]) != 0)
			return 0;
	return 1;
}

void seal_operation_narrow(const struct seal_syscall *call, uint64_t among,
			   struct seal_operation *out)
{
	struct seal_operation told = *out;

	if (call->state != SEAL_TASK_BLOCKED || !seal_operation_of_call(call, &told))
		return;
	if (!(among & BIT(told.op)))
		return;
	*out = told;
}

int seal_task_changes_no_map(const struct seal_stack *stack, const struct seal_syscall *call)
{
	struct seal_operation operation = {.op = SEAL_OP_HIDDEN};
	unsigned at = 0;
	uint64_t among;

	while (at < stack->count && !judge_function(stack, at, &operation, &among))
		at++;
	if (at == stack->count)
		return 0;
	if (among)
		seal_operation_narrow(call, among, &operation);
	return !seal_changes((uint32_t)operation.op, SEAL_TRAIT_REFLINK | SEAL_TRAIT_ATOMIC);
}

#include "sealsvc/operation.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x40 /* since v6.11 */
#endif
#ifndef FALLOC_FL_WRITE_ZEROES
#define FALLOC_FL_WRITE_ZEROES 0x80 /* since v6.17 */
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

/* ioctl commands that change maps, from linux/falloc.h and xfs_fs.h. */
#define IOC_RESVSP 0x40305828u
#define IOC_RESVSP64 0x4030582au
#define IOC_UNRESVSP 0x40305829u
#define IOC_UNRESVSP64 0x4030582bu
#define IOC_ZERO_RANGE 0x40305839u
#define IOC_EXCHANGE_RANGE 0x40285881u

void seal_syscall_reader_init(struct seal_syscall_reader *reader)
{
	memset(reader, 0, sizeof(*reader));
	for (unsigned i = 0; i < 64; i++)
		reader->slots[i].fd = -1;
}

void seal_syscall_reader_close(struct seal_syscall_reader *reader)
{
	for (unsigned i = 0; i < 64; i++)
		if (reader->slots[i].fd >= 0)
			close(reader->slots[i].fd);
	seal_syscall_reader_init(reader);
}

/* An open file of /proc names the task it was opened for, never a later one with its number: reading
 * it then fails with ESRCH. */
static ssize_t read_line(struct seal_syscall_reader *reader, int32_t tid, char *line, size_t size)
{
	typeof(&reader->slots[0]) slot = &reader->slots[(uint32_t)tid % 64];
	char path[40];
	ssize_t n;

	if (slot->fd >= 0 && slot->tid == tid) {
		n = pread(slot->fd, line, size - 1, 0);
		if (n > 0)
			return n;
	}
	if (slot->fd >= 0)
		close(slot->fd);
	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	slot->tid = tid;
	slot->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (slot->fd < 0)
		return -errno;
	n = pread(slot->fd, line, size - 1, 0);
	return n < 0 ? -errno : n;
}

void seal_syscall_read(struct seal_syscall_reader *reader, int32_t tid, struct seal_syscall *out)
{
	char line[256], *p = line;
	ssize_t n = read_line(reader, tid, line, sizeof(line));

	memset(out, 0, sizeof(*out));
	out->nr = -1;
	if (n <= 0) {
		out->state = SEAL_TASK_GONE;
		return;
	}
	line[n] = '\0';
	if (line[0] == 'r') { /* "running" */
		out->state = SEAL_TASK_RUNNING;
		return;
	}
	out->state = SEAL_TASK_BLOCKED;
	out->nr = strtoll(p, &p, 10);
	if (out->nr < 0) /* "-1 SP PC": blocked, but in no system call */
		return;
	for (int i = 0; i < 6; i++)
		out->args[i] = strtoull(p, &p, 16);
	out->sp = strtoull(p, &p, 16);
	out->pc = strtoull(p, &p, 16);
}

static int threads_of(int32_t tid)
{
	char path[40], text[2048], *at;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	at = strstr(text, "\nThreads:");
	return at ? atoi(at + 9) : -1;
}

static int open_by_flags(uint64_t flags)
{
	return flags & O_TRUNC ? SEAL_OP_OPEN_TRUNC : SEAL_OP_OPEN;
}

/* The flags of openat2(2) are in user memory. The kernel has copied them already, so that another
 * thread could change them after the fact: believe them of a single-threaded process only. */
static int open_by_how(int32_t tid, uint64_t how)
{
	uint64_t flags;
	struct iovec local = {&flags, sizeof(flags)};
	struct iovec remote = {(void *)(uintptr_t)how, sizeof(flags)};

	if (process_vm_readv(tid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(flags))
		return SEAL_OP_OPEN_HIDDEN;
	if (flags & O_TRUNC)
		return SEAL_OP_OPEN_TRUNC;
	return threads_of(tid) == 1 ? SEAL_OP_OPEN : SEAL_OP_OPEN_HIDDEN;
}

static void judge_open(const struct seal_syscall *call, struct seal_operation *out)
{
	out->op = SEAL_OP_OPEN_HIDDEN;
	switch (call->nr) {
#ifdef SYS_open
	case SYS_open:
		out->argument = call->args[1];
		out->op = open_by_flags(call->args[1]);
		return;
	case SYS_creat:
		out->op = SEAL_OP_OPEN_TRUNC;
		return;
#endif
	case SYS_openat:
	case SYS_open_by_handle_at:
		out->argument = call->args[2];
		out->op = open_by_flags(call->args[2]);
		return;
	case SYS_openat2:
		out->op = open_by_how(out->tid, call->args[2]);
		return;
	case SYS_execve:
	case SYS_execveat:
		out->op = SEAL_OP_EXEC;
		return;
	}
}

static int judge_fallocate(uint64_t mode)
{
	switch (mode & ~(uint64_t)FALLOC_FL_KEEP_SIZE) {
	case 0:
		return SEAL_OP_ALLOCATE;
	case FALLOC_FL_PUNCH_HOLE:
		return SEAL_OP_PUNCH;
	case FALLOC_FL_ZERO_RANGE:
		return SEAL_OP_ZERO;
	case FALLOC_FL_WRITE_ZEROES:
		return SEAL_OP_WRITE_ZEROES;
	case FALLOC_FL_UNSHARE_RANGE:
		return SEAL_OP_UNSHARE;
	case FALLOC_FL_COLLAPSE_RANGE:
		return SEAL_OP_COLLAPSE;
	case FALLOC_FL_INSERT_RANGE:
		return SEAL_OP_INSERT;
	}
	return SEAL_OP_HIDDEN;
}

static int judge_ioctl(uint32_t command)
{
	switch (command) {
	case FICLONE:
	case FICLONERANGE:
		return SEAL_OP_CLONE;
	case FIDEDUPERANGE:
		return SEAL_OP_DEDUPE;
	case IOC_EXCHANGE_RANGE:
		return SEAL_OP_EXCHANGE;
	case IOC_RESVSP:
	case IOC_RESVSP64:
		return SEAL_OP_ALLOCATE;
	case IOC_UNRESVSP:
	case IOC_UNRESVSP64:
		return SEAL_OP_PUNCH;
	case IOC_ZERO_RANGE:
		return SEAL_OP_ZERO;
	}
	return SEAL_OP_HIDDEN;
}

static int judge_madvise(uint64_t advice)
{
	return advice == MADV_REMOVE ? SEAL_OP_REMOVE : SEAL_OP_READ;
}

/* Numbers are those of the native ABI. A 32-bit caller's numbers (ia32: truncate 92, ftruncate 93,
 * truncate64 193, ftruncate64 194, madvise 219, io_submit 248, fallocate 324, copy_file_range 377,
 * pwritev2 379, ioctl 54) meet none of the harmless ones below, so it is at worst held too much. */
static void judge_access(const struct seal_syscall *call, struct seal_operation *out)
{
	switch (call->nr) {
	case SYS_read:
	case SYS_pread64:
	case SYS_readv:
	case SYS_preadv:
	case SYS_preadv2:
	case SYS_readahead:
	case SYS_fadvise64:
	case SYS_execve:
	case SYS_execveat:
		out->op = SEAL_OP_READ;
		return;
	case SYS_mmap:
		out->op = SEAL_OP_MMAP;
		return;
	case SYS_write:
	case SYS_pwrite64:
	case SYS_writev:
	case SYS_pwritev:
	case SYS_sendfile:
	case SYS_splice:
		out->op = SEAL_OP_WRITE;
		return;
	case SYS_pwritev2:
		out->argument = call->args[5];
		out->op = call->args[5] & RWF_ATOMIC ? SEAL_OP_WRITE_ATOMIC : SEAL_OP_WRITE;
		return;
	case SYS_truncate:
	case SYS_ftruncate:
		out->op = SEAL_OP_TRUNCATE;
		out->offset = call->args[1];
		out->length = 0;
		return;
	case SYS_fallocate:
		out->argument = call->args[1];
		out->op = judge_fallocate(call->args[1]);
		out->offset = call->args[2];
		out->length = call->args[3];
		return;
	case SYS_ioctl:
		out->argument = (uint32_t)call->args[1];
		out->op = judge_ioctl((uint32_t)call->args[1]);
		return;
	case SYS_copy_file_range:
		out->op = SEAL_OP_COPY;
		return;
	case SYS_madvise:
		out->argument = call->args[2];
		out->op = judge_madvise(call->args[2]);
		return;
	case SYS_process_madvise:
		out->argument = call->args[3];
		out->op = judge_madvise(call->args[3]);
		return;
	}
}

void seal_operation_judge(const struct seal_event *event, const struct seal_syscall *call,
			  struct seal_operation *out)
{
	memset(out, 0, sizeof(*out));
	out->tid = event->tid;
	out->op = event->is_open ? SEAL_OP_OPEN_HIDDEN : SEAL_OP_HIDDEN;
	out->offset = event->has_range ? event->offset : 0;
	out->length = event->has_range ? event->length : 0;
	out->syscall = call->state == SEAL_TASK_BLOCKED ? call->nr : -1;
	if (out->syscall < 0)
		return;
	if (event->is_open)
		judge_open(call, out);
	else
		judge_access(call, out);
}

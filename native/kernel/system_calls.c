/* The arguments of system calls, as the kernel reads them. A register has 64 bits; the kernel takes as
 * many as the call's prototype says (SYSCALL_DEFINE, include/linux/syscalls.h), so that the others must
 * not count here: to madvise(2), advice 0x1_0000_0009 is MADV_REMOVE. */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "sealsvc/operation.h"

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

static int of_open(uint32_t flags)
{
	return flags & O_TRUNC ? SEAL_OP_OPEN_TRUNC : SEAL_OP_OPEN;
}

static int of_fallocate(uint32_t mode)
{
	switch (mode & ~(uint32_t)FALLOC_FL_KEEP_SIZE) {
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

static int of_ioctl(uint32_t command)
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

static int of_write(uint32_t flags)
{
	return flags & RWF_ATOMIC ? SEAL_OP_WRITE_ATOMIC : SEAL_OP_WRITE;
}

/* Advice that is not known may free pages as well. */
static int of_advice(uint32_t advice)
{
	return advice <= MADV_DONTNEED ? SEAL_OP_READ
	       : advice == MADV_REMOVE ? SEAL_OP_REMOVE
				       : SEAL_OP_HIDDEN;
}

/* `argument` is the one that tells the kind, 32 bits wide in each of these prototypes; -1: the number
 * alone tells it, and it is `op`. Numbers are those of the native ABI. */
static const struct {
	int nr, argument, op;
	int (*kind)(uint32_t);
} calls[] = {
#ifdef SYS_open
	{SYS_open, 1, 0, of_open},
	{SYS_creat, -1, SEAL_OP_OPEN_TRUNC, NULL},
#endif
	{SYS_openat, 2, 0, of_open},
	{SYS_open_by_handle_at, 2, 0, of_open},
	{SYS_openat2, -1, SEAL_OP_OPEN_HIDDEN, NULL},
	{SYS_execve, -1, SEAL_OP_EXEC, NULL},
	{SYS_execveat, -1, SEAL_OP_EXEC, NULL},
	{SYS_read, -1, SEAL_OP_READ, NULL},
	{SYS_pread64, -1, SEAL_OP_READ, NULL},
	{SYS_readv, -1, SEAL_OP_READ, NULL},
	{SYS_preadv, -1, SEAL_OP_READ, NULL},
	{SYS_preadv2, -1, SEAL_OP_READ, NULL},
	{SYS_readahead, -1, SEAL_OP_READ, NULL},
	{SYS_fadvise64, -1, SEAL_OP_READ, NULL},
	{SYS_mmap, -1, SEAL_OP_MMAP, NULL},
	{SYS_write, -1, SEAL_OP_WRITE, NULL},
	{SYS_pwrite64, -1, SEAL_OP_WRITE, NULL},
	{SYS_writev, -1, SEAL_OP_WRITE, NULL},
	{SYS_pwritev, -1, SEAL_OP_WRITE, NULL},
	{SYS_sendfile, -1, SEAL_OP_WRITE, NULL},
	{SYS_splice, -1, SEAL_OP_WRITE, NULL},
	{SYS_pwritev2, 5, 0, of_write},
	{SYS_truncate, -1, SEAL_OP_TRUNCATE, NULL},
	{SYS_ftruncate, -1, SEAL_OP_TRUNCATE, NULL},
	{SYS_fallocate, 1, 0, of_fallocate},
	{SYS_ioctl, 1, 0, of_ioctl},
	{SYS_copy_file_range, -1, SEAL_OP_COPY, NULL},
	{SYS_madvise, 2, 0, of_advice},
	{SYS_process_madvise, 3, 0, of_advice},
};

int seal_operation_of_call(const struct seal_syscall *call, struct seal_operation *out)
{
	for (unsigned i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		if (call->nr != calls[i].nr)
			continue;
		out->syscall = call->nr;
		out->op = calls[i].op;
		if (calls[i].kind) {
			out->argument = (uint32_t)call->args[calls[i].argument];
			out->op = calls[i].kind((uint32_t)out->argument);
		}
		if (call->nr == SYS_truncate || call->nr == SYS_ftruncate)
			out->offset = call->args[1];
		if (call->nr == SYS_fallocate) {
			out->offset = call->args[2];
			out->length = call->args[3];
		}
		return 1;
	}
	return 0;
}

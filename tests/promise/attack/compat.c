/* The 32-bit interface, from 64-bit code (int 0x80), and asynchronous I/O of the old kind. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "attack.h"

/* Numbers of arch/x86/entry/syscalls/syscall_32.tbl. */
enum {
	OLD_OPEN = 5,
	OLD_CREAT = 8,
	OLD_IOCTL = 54,
	OLD_TRUNCATE = 92,
	OLD_FTRUNCATE = 93,
	OLD_PWRITE64 = 181,
	OLD_TRUNCATE64 = 193,
	OLD_FTRUNCATE64 = 194,
	OLD_MADVISE = 219,
	OLD_SENDFILE64 = 239,
	OLD_OPENAT = 295,
	OLD_SPLICE = 313,
	OLD_FALLOCATE = 324,
	OLD_COPY_FILE_RANGE = 377,
	OLD_PWRITEV2 = 379,
	OLD_OPENAT2 = 437,
};

#ifdef __x86_64__
static long old_call(long number, long a, long b, long c, long d, long e, long f)
{
	long done;

	__asm__ volatile("push %%rbp\n\tmov %[f], %%rbp\n\tint $0x80\n\tpop %%rbp"
			 : "=a"(done)
			 : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), [f] "r"(f)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)done;
}

/* The file mapped where a 32-bit call can name it. */
static long remove_below(const struct op *op, int fd, uint32_t offset)
{
	uint32_t at = offset % FILE_BYTES / BLOCK * BLOCK, length = op->length % 65536;
	void *low = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_32BIT, fd, 0);
	long done;

	if (low == MAP_FAILED)
		return -errno;
	if (length > FILE_BYTES - at)
		length = FILE_BYTES - at;
	done = old_call(OLD_MADVISE, (long)low + at, (long)length, op->sub & 16 ? 9 : 4, 0, 0, 0);
	munmap(low, FILE_BYTES);
	return done;
}

static long compat_call(struct attacker *a, const struct op *op, int fd)
{
	long offset = (long)(op->offset % (2 * FILE_BYTES)) & (op->sub & 32 ? -BLOCK : -1);
	long length = (long)(op->length % BUFFER), path = (long)a->buffer + 64;
	long flags = op->flags & 1 ? O_RDWR | O_TRUNC : O_RDWR, other = a->held[op->other];
	uint32_t *iov = (uint32_t *)(a->buffer + 128);

	target_path(op, a->buffer + 64);
	switch (op->sub % 15) {
	case 0:
		return old_call(OLD_TRUNCATE, path, offset, 0, 0, 0, 0);
	case 1:
		return old_call(OLD_FTRUNCATE, fd, offset, 0, 0, 0, 0);
	case 2:
		return old_call(OLD_TRUNCATE64, path, offset, 0, 0, 0, 0);
	case 3:
		return old_call(OLD_FTRUNCATE64, fd, offset, 0, 0, 0, 0);
	case 4:
	case 5:
		return old_call(OLD_FALLOCATE, fd, op->flags % 16 ? 3 : (long)(op->argument % 256),
				offset, 0, length ? length : BLOCK, 0);
	case 6:
		return remove_below(op, fd, (uint32_t)offset);
	case 7: /* FICLONERANGE; its struct is the same for both */
		*(uint64_t *)(a->buffer + 128) = (uint64_t)other;
		*(uint64_t *)(a->buffer + 136) = op->second & ~(uint64_t)(BLOCK - 1);
		*(uint64_t *)(a->buffer + 144) = (uint64_t)length & ~(uint64_t)(BLOCK - 1);
		*(uint64_t *)(a->buffer + 152) = (uint64_t)offset & ~(uint64_t)(BLOCK - 1);
		return old_call(OLD_IOCTL, fd, 0x4020940d, (long)a->buffer + 128, 0, 0, 0);
	case 8: {
		int fds = old_call(OLD_OPEN, path, flags, 0, 0, 0, 0);

		return fds < 0 ? fds : close(fds);
	}
	case 9: {
		int fds = old_call(OLD_OPENAT, a->directory, path, flags, 0, 0, 0);

		return fds < 0 ? fds : close(fds);
	}
	case 10:
		iov[0] = (uint32_t)(uintptr_t)a->buffer;
		iov[1] = (uint32_t)length & ~4095u;
		return old_call(OLD_PWRITEV2, fd, (long)iov, 1, offset & -BLOCK, 0,
				op->flags & 1 ? 0x40 : 0);
	case 11:
		return old_call(OLD_PWRITE64, fd, (long)a->buffer, length, offset, 0, 0);
	case 12:
		*(uint64_t *)(a->buffer + 128) = (uint64_t)offset;
		return old_call(OLD_COPY_FILE_RANGE, other, 0, fd, (long)a->buffer + 128, length,
				0);
	case 13: {
		int fds = old_call(OLD_CREAT, path, 0600, 0, 0, 0, 0);

		return fds < 0 ? fds : close(fds);
	}
	default: { /* struct open_how */
		uint64_t *how = (uint64_t *)(a->buffer + 128);
		int fds;

		how[0] = (uint64_t)flags;
		how[1] = how[2] = 0;
		fds = old_call(OLD_OPENAT2, a->directory, path, (long)how, 24, 0, 0);
		return fds < 0 ? fds : close(fds);
	}
	}
}

long do_compat(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, op->sub % 15 == 10 ? O_DIRECT : 0);
	long done;

	if (fd < 0)
		return fd;
	done = compat_call(a, op, fd);
	target_close(a, op, fd);
	return done;
}
#else
long do_compat(struct attacker *a, const struct op *op)
{
	(void)a;
	(void)op;
	return -ENOSYS;
}
#endif

long do_aio(struct attacker *a, const struct op *op)
{
	int atomic = (op->argument & 0x40) != 0;
	struct iocb block = {.aio_buf = (uint64_t)(uintptr_t)a->buffer}, *list = &block;
	struct timespec limit = {0, 20000000};
	struct io_event event;
	int fd = target_open(a, op, atomic || (op->sub & 1) ? O_DIRECT : 0);
	long done;

	if (fd < 0)
		return fd;
	if (!a->aio && syscall(SYS_io_setup, 8, &a->aio) < 0)
		return -errno;
	block.aio_fildes = (uint32_t)fd;
	block.aio_lio_opcode = op->sub % 8 == 7	  ? IOCB_CMD_PREAD
			       : op->sub % 8 == 6 ? IOCB_CMD_FDSYNC
						  : IOCB_CMD_PWRITE;
	block.aio_nbytes = op->length < BUFFER ? op->length : BUFFER;
	block.aio_offset = (int64_t)(op->offset % (2 * FILE_BYTES));
	if (op->sub & 16) {
		block.aio_offset &= -BLOCK;
		block.aio_nbytes = block.aio_nbytes < BLOCK
					   ? BLOCK
					   : block.aio_nbytes & ~(uint64_t)(BLOCK - 1);
	}
	if (block.aio_lio_opcode == IOCB_CMD_FDSYNC)
		block.aio_buf = block.aio_nbytes = 0, block.aio_offset = 0;
	block.aio_rw_flags = (int)op->argument;
	done = syscall(SYS_io_submit, a->aio, 1L, &list);
	if (done < 0)
		done = -errno;
	else if (syscall(SYS_io_getevents, a->aio, 1L, 1L, &event, &limit) == 1)
		done = (long)event.res;
	target_close(a, op, fd);
	return done;
}

/* System calls on files and memory, with arguments as odd as the record says. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "attack.h"

/* An int to the kernel, a register of 64 bits to whoever looks at it. */
static uint64_t wide(const struct op *op, uint32_t value)
{
	return (uint64_t)op->high << 32 | value;
}

static long result(long value)
{
	return value < 0 ? -errno : value;
}

static uint64_t bounded(uint64_t length)
{
	return length < BUFFER ? length : BUFFER;
}

/* O_DIRECT and RWF_ATOMIC want whole blocks; half of the time they get them. */
static struct iovec span(const struct attacker *a, const struct op *op, uint64_t *offset)
{
	struct iovec iov = {a->buffer, bounded(op->length)};

	*offset = op->offset;
	if (op->sub & 1) {
		*offset &= ~(uint64_t)(BLOCK - 1);
		iov.iov_len = iov.iov_len < BLOCK ? BLOCK : iov.iov_len & ~(size_t)(BLOCK - 1);
	}
	return iov;
}

long do_read(struct attacker *a, const struct op *op)
{
	uint64_t offset;
	struct iovec iov = span(a, op, &offset);
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	switch (op->sub / 2 % 5) {
	case 0:
		done = pread(fd, iov.iov_base, iov.iov_len, (off_t)offset);
		break;
	case 1:
		done = preadv(fd, &iov, 1, (off_t)offset);
		break;
	case 2:
		done = syscall(SYS_preadv2, fd, &iov, 1UL, offset, 0UL, wide(op, op->flags & 0x9f));
		break;
	case 3:
		done = readahead(fd, (off_t)offset, iov.iov_len);
		break;
	default:
		done = syscall(SYS_fadvise64, wide(op, (uint32_t)fd), offset, op->length,
			       wide(op, op->sub % 6));
	}
	done = result(done);
	target_close(a, op, fd);
	return done;
}

long do_write(struct attacker *a, const struct op *op)
{
	uint64_t offset;
	struct iovec iov = span(a, op, &offset);
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	switch (op->sub / 2 % 3) {
	case 0:
		done = pwrite(fd, iov.iov_base, iov.iov_len, (off_t)offset);
		break;
	case 1:
		done = pwritev(fd, &iov, 1, (off_t)offset);
		break;
	default:
		lseek(fd, (off_t)offset, SEEK_SET);
		done = write(fd, iov.iov_base, iov.iov_len);
	}
	done = result(done);
	target_close(a, op, fd);
	return done;
}

long do_write_flags(struct attacker *a, const struct op *op)
{
	uint64_t offset;
	struct iovec iov = span(a, op, &offset);
	int fd = target_open(a, op, op->argument & 0x40 ? O_DIRECT : 0);
	long done;

	if (fd < 0)
		return fd;
	done = result(syscall(SYS_pwritev2, wide(op, (uint32_t)fd), &iov, 1UL, offset,
			      (uint64_t)op->high, wide(op, (uint32_t)op->argument)));
	target_close(a, op, fd);
	return done;
}

/* Files stay below a size that the file system has room for. */
static uint64_t size_of(const struct op *op)
{
	return op->offset > 8 * FILE_BYTES ? op->offset % (2 * FILE_BYTES) : op->offset;
}

long do_truncate(struct attacker *a, const struct op *op)
{
	char path[32];
	long done;
	int fd;

	if (op->sub & 1)
		return result(truncate(target_path(op, path), (off_t)size_of(op)));
	fd = target_open(a, op, 0);
	if (fd < 0)
		return fd;
	done = result(syscall(SYS_ftruncate, wide(op, (uint32_t)fd), size_of(op)));
	target_close(a, op, fd);
	return done;
}

long do_fallocate(struct attacker *a, const struct op *op)
{
	uint64_t mask = op->sub & 1 ? ~(uint64_t)(BLOCK - 1) : ~UINT64_C(0);
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	done = result(syscall(SYS_fallocate, wide(op, (uint32_t)fd),
			      wide(op, (uint32_t)op->argument), size_of(op) & mask,
			      (op->length ? op->length : BLOCK) & mask));
	target_close(a, op, fd);
	return done;
}

static char *mapped_part(struct attacker *a, const struct op *op, uint64_t *length)
{
	char *map = target_map(a, op->file);
	uint64_t offset = op->offset % FILE_BYTES & ~(uint64_t)(BLOCK - 1);

	if (map == MAP_FAILED)
		return NULL;
	*length = op->length ? op->length : BLOCK;
	if (*length > FILE_BYTES - offset)
		*length = FILE_BYTES - offset;
	return map + offset;
}

static sigjmp_buf after_fault;

static void faulted(int number)
{
	(void)number;
	siglongjmp(after_fault, 1);
}

long do_madvise(struct attacker *a, const struct op *op)
{
	uint64_t length;
	char *at = mapped_part(a, op, &length);

	if (!at)
		return -EINVAL;
	return result(syscall(SYS_madvise, at, length, wide(op, (uint32_t)op->argument)));
}

long do_process_madvise(struct attacker *a, const struct op *op)
{
	struct iovec iov;
	uint64_t length;
	char *at = mapped_part(a, op, &length);
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	long done;

	if (!at || pidfd < 0) {
		close(pidfd);
		return -EINVAL;
	}
	iov = (struct iovec){at, length};
	done = result(syscall(SYS_process_madvise, wide(op, (uint32_t)pidfd), &iov, 1UL,
			      wide(op, (uint32_t)op->argument), 0UL));
	close(pidfd);
	return done;
}

/* A store by a mapping of the attacker's: in place, or into what lies beside the seal. */
long do_store(struct attacker *a, const struct op *op)
{
	uint64_t length;
	char *at = mapped_part(a, op, &length);
	struct sigaction action = {.sa_handler = faulted, .sa_flags = SA_NODEFER}, old;

	if (!at)
		return -EINVAL;
	sigaction(SIGBUS, &action, &old);
	if (sigsetjmp(after_fault, 1) == 0) {
		if (length > 65536)
			length = 65536;
		memset(at, op->sub, length);
		if (op->flags & 1)
			msync(at, length & ~(uint64_t)(BLOCK - 1), MS_SYNC);
	}
	sigaction(SIGBUS, &old, NULL);
	return 0;
}

long do_splice(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0), other = a->held[op->other], pipes[2];
	loff_t offset = (loff_t)(op->offset % FILE_BYTES), from = (loff_t)(op->second % FILE_BYTES);
	struct iovec iov = {a->buffer, op->length % 65536};
	long done;

	if (fd < 0)
		return fd;
	if (op->sub % 3 == 0 && other >= 0) {
		lseek(fd, offset, SEEK_SET);
		done = result(syscall(SYS_sendfile, fd, other, &from, op->length % BUFFER));
	} else if (pipe2(pipes, O_CLOEXEC | O_NONBLOCK) == 0) {
		if (op->sub % 3 == 1)
			done = vmsplice(pipes[1], &iov, 1, 0);
		else
			done = write(pipes[1], a->buffer, iov.iov_len);
		if (done >= 0)
			done = result(splice(pipes[0], NULL, fd, &offset, iov.iov_len, 0));
		close(pipes[0]);
		close(pipes[1]);
	} else {
		done = -errno;
	}
	target_close(a, op, fd);
	return done;
}

long do_copy_range(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0), other = a->held[op->other];
	loff_t to = (loff_t)(op->offset % (2 * FILE_BYTES)),
	       from = (loff_t)(op->second % FILE_BYTES);
	long done;

	if (fd < 0)
		return fd;
	if (op->sub & 1) {
		to &= -BLOCK;
		from &= -BLOCK;
	}
	if (op->sub & 2)
		done = copy_file_range(fd, &from, other, &to, bounded(op->length), 0);
	else
		done = copy_file_range(other, &from, fd, &to, bounded(op->length), 0);
	done = result(done);
	target_close(a, op, fd);
	return done;
}

long do_open_flags(struct attacker *a, const struct op *op)
{
	uint64_t flags = wide(op, (uint32_t)op->argument | O_CLOEXEC);
	char path[32];
	long fd;

	target_path(op, path);
	switch (op->sub % 3) {
	case 0:
		fd = syscall(SYS_open, path, flags, 0600UL);
		break;
	case 1:
		fd = syscall(SYS_openat, wide(op, (uint32_t)AT_FDCWD), path, flags, 0600UL);
		break;
	default:
		fd = op->flags & 7 ? syscall(SYS_openat, (long)a->directory, path, flags, 0600UL)
				   : syscall(SYS_creat, path, 0600UL);
	}
	if (fd < 0)
		return -errno;
	if (op->flags & 8)
		do_store(a, op);
	close((int)fd);
	return 0;
}

long do_openat2(struct attacker *a, const struct op *op)
{
	struct open_how *how = (struct open_how *)a->buffer;
	char path[32];
	long fd;

	*how = (struct open_how){.flags = op->argument | O_CLOEXEC};
	fd = syscall(SYS_openat2, wide(op, (uint32_t)AT_FDCWD), target_path(op, path), how,
		     sizeof(*how));
	if (fd < 0)
		return -errno;
	close((int)fd);
	return 0;
}

long do_sync(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	switch (op->sub % 4) {
	case 0:
		done = fdatasync(fd);
		break;
	case 1:
		done = fsync(fd);
		break;
	case 2:
		done = syscall(SYS_sync_file_range, fd, op->offset % FILE_BYTES, op->length,
			       wide(op, op->flags % 8));
		break;
	default:
		done = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	}
	done = result(done);
	target_close(a, op, fd);
	return done;
}

/* Names, modes and attributes: the map has nothing to do with them. */
long do_names(struct attacker *a, const struct op *op)
{
	char path[32], extra[32];

	target_path(op, path);
	snprintf(extra, sizeof(extra), "x%u", a->worker);
	switch (op->sub % 5) {
	case 0:
		if (op->file == FILES - 3) /* a core file with two names is not written to */
			return 0;
		if (link(path, extra) < 0)
			return -errno;
		return result(unlink(extra));
	case 1:
		return result(chmod(path, op->flags & 1 ? 0666 : 0660));
	case 2:
		return result(setxattr(path, "user.promise", a->buffer, op->length % 2048, 0));
	case 3:
		return result(removexattr(path, "user.promise"));
	default:
		return result(utimensat(AT_FDCWD, path, NULL, 0));
	}
}

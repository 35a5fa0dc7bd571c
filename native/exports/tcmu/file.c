/* subtype "file": the regular file PATH, through the page cache. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"
#include "sealsvc/copy.h"

static int file_open(const char *path, struct tcmu_medium *medium, void **context)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat status;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) ||
	    (uint64_t)status.st_size < medium->block_size) {
		close(fd);
		return -EINVAL;
	}
	medium->size = (uint64_t)status.st_size / medium->block_size * medium->block_size;
	medium->write_cache = 1;
	medium->discard_granularity = 4096;
	*context = (void *)(intptr_t)fd;
	return 0;
}

static int fd_of(void *context)
{
	return (int)(intptr_t)context;
}

static void file_close(void *context)
{
	close(fd_of(context));
}

static int file_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	while (length) {
		ssize_t done = pread(fd_of(context), buffer, length, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done ? -errno : -EIO; /* the file became shorter */
		buffer = (char *)buffer + done;
		length -= (uint64_t)done;
		offset += (uint64_t)done;
	}
	return 0;
}

static int file_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	while (length) {
		ssize_t done = pwrite(fd_of(context), buffer, length, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return done ? -errno : -EIO;
		buffer = (const char *)buffer + done;
		length -= (uint64_t)done;
		offset += (uint64_t)done;
	}
	return 0;
}

static int file_flush(void *context)
{
	return fdatasync(fd_of(context)) < 0 ? -errno : 0;
}

static int file_discard(void *context, uint64_t length, uint64_t offset)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	return fallocate(fd_of(context), mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

static int file_zero(void *context, uint64_t length, uint64_t offset)
{
	int mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;

	return fallocate(fd_of(context), mode, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

/* copy_file_range(2), which shares blocks where the file system can: these files are under no seal of ours, and
 * where others have one on them the call waits, as everybody's does. */
static int file_copy(void *from, uint64_t from_offset, void *to, uint64_t to_offset,
		     uint64_t length, uint64_t *done)
{
	struct seal_copy copy = {fd_of(from), fd_of(to), from_offset, to_offset, length};
	struct seal_copied copied = seal_copy_range(&copy);

	*done = copied.bytes == length ? length : copied.bytes & ~UINT64_C(4095);
	/* EIO and its kin are the disk's; that it cannot be done this way has many an errno. */
	if (copied.error == EIO || copied.error == ENOSPC || copied.error == EDQUOT)
		return -copied.error;
	return *done < length ? -EOPNOTSUPP : 0;
}

const struct tcmu_plugin tcmu_file = {
	.subtype = "file",
	.about = "PATH: a regular file, through the page cache",
	.open = file_open,
	.close = file_close,
	.read = file_read,
	.write = file_write,
	.flush = file_flush,
	.discard = file_discard,
	.zero = file_zero,
	.copy = file_copy,
};

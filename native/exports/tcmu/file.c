/* subtype "file": the regular file PATH, through the page cache. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include "plugin.h"

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
};

/* The strategies that are one system call in a loop. */
#include "sealsvc/copy.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BUFFER (UINT64_C(1) << 20)
/* MAX_RW_COUNT of the kernel cuts every call to this (include/linux/fs.h). */
#define LONGEST UINT64_C(0x7ffff000)

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void *buffer_of(uint64_t size)
{
	void *buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return buffer == MAP_FAILED ? NULL : buffer;
}

/* How much was written of `length`; an errno in *error. */
static uint64_t write_all(int fd, const char *bytes, uint64_t length, uint64_t offset, int *error)
{
	uint64_t done = 0;

	while (done < length) {
		ssize_t n = pwrite(fd, bytes + done, length - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			*error = n < 0 ? errno : EIO; /* POSIX has no write of 0 bytes here */
			break;
		}
		done += (uint64_t)n;
	}
	return done;
}

static ssize_t read_some(int fd, void *buffer, uint64_t length, uint64_t offset)
{
	ssize_t n;

	do {
		n = pread(fd, buffer, length, (off_t)offset);
	} while (n < 0 && errno == EINTR);
	return n;
}

struct seal_copied seal_copy_plain(const struct seal_copy *copy)
{
	struct seal_copied done = {0, 0};
	char *buffer = buffer_of(BUFFER);
	int error = 0;

	if (!buffer)
		return (struct seal_copied){0, ENOMEM};
	while (done.bytes < copy->length && !error) {
		uint64_t wanted = least(BUFFER, copy->length - done.bytes);
		ssize_t n =
			read_some(copy->source, buffer, wanted, copy->source_offset + done.bytes);

		if (n <= 0) {
			error = n < 0 ? errno : 0;
			break;
		}
		done.bytes += write_all(copy->destination, buffer, (uint64_t)n,
					copy->destination_offset + done.bytes, &error);
	}
	munmap(buffer, BUFFER);
	done.error = error;
	return done;
}

struct seal_copied seal_copy_range(const struct seal_copy *copy)
{
	struct seal_copied done = {0, 0};

	while (done.bytes < copy->length) {
		off_t from = (off_t)(copy->source_offset + done.bytes);
		off_t to = (off_t)(copy->destination_offset + done.bytes);
		ssize_t n = copy_file_range(copy->source, &from, copy->destination, &to,
					    least(copy->length - done.bytes, LONGEST), 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			done.error = n < 0 ? errno : 0;
			break;
		}
		done.bytes += (uint64_t)n;
	}
	return done;
}

struct seal_copied seal_copy_clone(const struct seal_copy *copy)
{
	struct file_clone_range range = {
		.src_fd = copy->source,
		.src_offset = copy->source_offset,
		.src_length = copy->length,
		.dest_offset = copy->destination_offset,
	};
	int result;

	do {
		result = ioctl(copy->destination, FICLONERANGE, &range);
	} while (result < 0 && errno == EINTR);
	if (result < 0)
		return (struct seal_copied){0, errno};
	return (struct seal_copied){copy->length, 0};
}

struct seal_copied seal_copy_zeros(int fd, uint64_t offset, uint64_t length)
{
	struct seal_copied done = {0, 0};
	char *zeros = buffer_of(BUFFER);
	int error = 0;

	if (!zeros)
		return (struct seal_copied){0, ENOMEM};
	while (done.bytes < length && !error)
		done.bytes += write_all(fd, zeros, least(BUFFER, length - done.bytes),
					offset + done.bytes, &error);
	munmap(zeros, BUFFER);
	done.error = error;
	return done;
}

static uint64_t common(const char *a, const char *b, uint64_t length)
{
	uint64_t i = 0;

	if (!memcmp(a, b, length))
		return length;
	while (a[i] == b[i])
		i++;
	return i;
}

struct seal_copied seal_copy_compare(const struct seal_copy *copy)
{
	struct seal_copied done = {0, 0};
	char *buffers = buffer_of(2 * BUFFER);

	if (!buffers)
		return (struct seal_copied){0, ENOMEM};
	while (done.bytes < copy->length) {
		uint64_t wanted = least(BUFFER, copy->length - done.bytes), equal;
		ssize_t a =
			read_some(copy->source, buffers, wanted, copy->source_offset + done.bytes);
		ssize_t b = a <= 0 ? a
				   : read_some(copy->destination, buffers + BUFFER, (uint64_t)a,
					       copy->destination_offset + done.bytes);

		if (a <= 0 || b <= 0) {
			done.error = a < 0 || b < 0 ? errno : 0;
			break;
		}
		equal = common(buffers, buffers + BUFFER, least((uint64_t)a, (uint64_t)b));
		done.bytes += equal;
		if (equal < least((uint64_t)a, (uint64_t)b))
			break;
	}
	munmap(buffers, 2 * BUFFER);
	return done;
}

int seal_write_back(int fd, uint64_t offset, uint64_t length)
{
	const unsigned int flags =
		SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

	return sync_file_range(fd, (off_t)offset, (off_t)length, flags) < 0 ? -errno : 0;
}

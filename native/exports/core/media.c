#include "media.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "memory.h"

#define BOUNCE (1u << 20)
#define FIRST_REST_NS 500000
#define DOUBLINGS 7 /* to 64 ms */

static uint64_t down(uint64_t value, uint32_t align)
{
	return value & ~(uint64_t)(align - 1);
}

static uint64_t up(uint64_t value, uint32_t align)
{
	return down(value + align - 1, align);
}

/* Whole transfers: a short one is continued, an end of the file that should not be there is EIO. */
static int transfer(struct export_target *target, char *buffer, size_t length, uint64_t offset,
		    int writing)
{
	while (length) {
		ssize_t done = writing ? pwrite(target->fd, buffer, length, (off_t)offset)
				       : pread(target->fd, buffer, length, (off_t)offset);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		if (!done)
			return -EIO;
		buffer += done, offset += (uint64_t)done, length -= (size_t)done;
	}
	return 0;
}

static int is_aligned(const struct export_target *target, const void *buffer, size_t length,
		      uint64_t offset)
{
	return !(((uintptr_t)buffer | length | offset) & (target->align - 1));
}

static char *bounce(const struct export_target *target, size_t length)
{
	void *memory;

	if (posix_memalign(&memory, target->align, up(length, target->align)))
		return NULL;
	return memory;
}

/* The device's end need not be that of a block: what the file has there is read and written with it. */
static size_t piece_of(const struct export_target *target, uint64_t offset, uint64_t end,
		       uint64_t *from, uint64_t *to)
{
	*from = down(offset, target->align);
	*to = up(end, target->align);
	if (*to - *from > BOUNCE)
		*to = *from + BOUNCE;
	return (size_t)((end < *to ? end : *to) - offset);
}

static int direct_read(struct export_target *target, char *buffer, size_t length, uint64_t offset)
{
	uint64_t from, to, end = offset + length;
	int error = 0;
	char *memory;

	if (is_aligned(target, buffer, length, offset))
		return transfer(target, buffer, length, offset, 0);
	memory = bounce(target,
			length + 2 * target->align > BOUNCE ? BOUNCE : length + 2 * target->align);
	if (!memory)
		return -ENOMEM;
	while (offset < end && !error) {
		size_t part = piece_of(target, offset, end, &from, &to);

		error = transfer(target, memory, to - from, from, 0);
		if (!error)
			memcpy(buffer, memory + (offset - from), part);
		buffer += part, offset += part;
	}
	free(memory);
	return error;
}

/* NULL as buffer: zeroes. */
static int direct_write(struct export_target *target, const char *buffer, size_t length,
			uint64_t offset)
{
	uint64_t from, to, end = offset + length;
	int error = 0;
	char *memory;

	if (buffer && is_aligned(target, buffer, length, offset))
		return transfer(target, (char *)buffer, length, offset, 1);
	memory = bounce(target,
			length + 2 * target->align > BOUNCE ? BOUNCE : length + 2 * target->align);
	if (!memory)
		return -ENOMEM;
	while (offset < end && !error) {
		size_t part = piece_of(target, offset, end, &from, &to);

		if (part < to - from)
			error = transfer(target, memory, to - from, from, 0);
		if (error)
			break;
		if (buffer)
			memcpy(memory + (offset - from), buffer, part);
		else
			memset(memory + (offset - from), 0, part);
		error = transfer(target, memory, to - from, from, 1);
		buffer = buffer ? buffer + part : NULL;
		offset += part;
	}
	free(memory);
	return error;
}

int media_read(struct export_target *target, void *buffer, size_t length, uint64_t offset)
{
	if (target->mapped_io)
		return memory_load(buffer, target->mapping + offset, length);
	return direct_read(target, buffer, length, offset);
}

int media_is_partial(const struct export_target *target, size_t length, uint64_t offset)
{
	return !target->mapped_io && (length | offset) & (target->align - 1);
}

int media_write(struct export_target *target, const void *buffer, size_t length, uint64_t offset)
{
	if (target->dax && target->mapped_io)
		return memory_store_persistent(target->mapping + offset, buffer, length);
	if (target->mapped_io)
		return memory_store(target->mapping + offset, buffer, length);
	return direct_write(target, buffer, length, offset);
}

int media_zero(struct export_target *target, size_t length, uint64_t offset)
{
	if (target->dax && target->mapped_io)
		return memory_clear_persistent(target->mapping + offset, length);
	if (target->mapped_io)
		return memory_clear(target->mapping + offset, length);
	return direct_write(target, NULL, length, offset);
}

int media_compare(struct export_target *target, const void *expected, size_t length,
		  uint64_t offset, size_t *at)
{
	char *found;
	int error;

	if (target->mapped_io) {
		error = memory_compare(target->mapping + offset, expected, length, at);
	} else {
		found = malloc(length);
		error = found ? direct_read(target, found, length, offset) : -ENOMEM;
		if (!error)
			error = memory_compare(found, expected, length, at);
		free(found);
	}
	return error ? error : *at == length ? 0 : -EILSEQ;
}

int media_punch(struct export_target *target, size_t length, uint64_t offset)
{
	if (!fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		       (off_t)length))
		return 0;
	return -errno;
}

void media_rest(unsigned int n)
{
	const struct timespec rest = {.tv_nsec = FIRST_REST_NS << (n < DOUBLINGS ? n : DOUBLINGS)};

	nanosleep(&rest, NULL);
}

int media_is_refused(int error)
{
	switch (-error) {
	/* gate/reader.c. The holder's own conflict is one that is told EBUSY at once, and an operation is a conflict
	 * where it was not seen what it does: the machine is too busy to look, or there is no descriptor left
	 * to look with. */
	case EBUSY:
	case ETXTBSY: /* the same, of a seal of others that refuses */
	case EAGAIN:  /* too many wait */
	case EPERM: /* the kernel had no descriptor to ask with (fs/notify/fanotify/fanotify_user.c) */
		return 1;
	}
	return 0;
}

int media_settle(struct export_target *target, size_t length, uint64_t offset)
{
	uint64_t from = down(offset, (uint32_t)sysconf(_SC_PAGESIZE));

#if defined(__x86_64__)
	/* MAP_SYNC, and the stores went past the caches. */
	if (target->dax && target->mapped_io)
		return 0;
#endif
	/* msync(2) is vfs_fsync_range(..., datasync) of the range (mm/msync.c). */
	if (target->mapped_io)
		return msync(target->mapping + from, length + (offset - from), MS_SYNC) ? -errno
											: 0;
	return fdatasync(target->fd) ? -errno : 0;
}

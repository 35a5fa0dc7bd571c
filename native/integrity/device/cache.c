#include "cache.h"

#include "sealsvc/cachestat.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define STRETCH 1024 /* pages in one call of mincore */

/* mincore(2) tells what is cached of a file that one owns, but not what is dirty. */
static int look_by_mapping(int file, uint64_t offset, uint64_t length,
			   struct seal_cache_counts *out)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start = offset & ~(page - 1);
	uint64_t size = offset + length - start;
	unsigned char present[STRETCH];
	char *at = mmap(NULL, size, PROT_READ, MAP_SHARED, file, (off_t)start);
	int error = 0;

	if (at == MAP_FAILED)
		return -errno;
	for (uint64_t done = 0; !error && done < size; done += STRETCH * page) {
		uint64_t left = size - done, part = left < STRETCH * page ? left : STRETCH * page;

		if (mincore(at + done, part, present) < 0)
			error = -errno;
		for (uint64_t i = 0; !error && i < (part + page - 1) / page; i++)
			out->cached += present[i] & 1;
	}
	munmap(at, size);
	out->dirty = out->cached;
	return error;
}

int pi_cache_look(int file, uint64_t offset, uint64_t length, int mapping, struct pi_cache *out)
{
	struct seal_cache_counts counts = {0};
	int error = mapping ? -ENOSYS : seal_cachestat(file, offset, length, &counts);

	if (error == -EPERM || error == -ENOSYS)
		error = look_by_mapping(file, offset, length, &counts);
	*out = (struct pi_cache){counts.cached, counts.dirty + counts.writeback};
	return error;
}

static int look(int file, uint64_t offset, uint64_t length, struct pi_cache *out)
{
	return pi_cache_look(file, offset, length, 0, out);
}

static int write_back(int file, uint64_t offset, uint64_t length)
{
	const unsigned int all =
		SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

	return sync_file_range(file, (off64_t)offset, (off64_t)length, all) < 0 ? -errno : 0;
}

int pi_cache_clean(int file, uint64_t offset, uint64_t length)
{
	struct pi_cache counts;
	int error = look(file, offset, length, &counts);

	if (error || !counts.dirty)
		return error;
	return write_back(file, offset, length);
}

int pi_cache_drop(int file, uint64_t offset, uint64_t length)
{
	struct pi_cache counts;
	int error = look(file, offset, length, &counts);

	if (error || !counts.cached)
		return error;
	error = write_back(file, offset, length);
	if (error)
		return error;
	posix_fadvise(file, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
	error = look(file, offset, length, &counts);
	if (error || !counts.cached)
		return error;
	/* A large folio that reaches beyond the range is left by the call above (mm/truncate.c
	 * find_lock_entries): drop what the file has. The seal is exclusive: only its holder is concerned. */
	posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
	error = look(file, offset, length, &counts);
	return error ? error : counts.cached ? -EBUSY : 0;
}

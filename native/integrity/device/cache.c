#include "cache.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CACHESTAT 451 /* since Linux 6.5 */

struct range {
	uint64_t offset, length;
};

struct counts {
	uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

static int look(int file, uint64_t offset, uint64_t length, struct counts *out)
{
	struct range range = {offset, length};

	return syscall(CACHESTAT, file, &range, out, 0u) < 0 ? -errno : 0;
}

static int write_back(int file, uint64_t offset, uint64_t length)
{
	const unsigned int all =
		SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

	return sync_file_range(file, (off64_t)offset, (off64_t)length, all) < 0 ? -errno : 0;
}

int pi_cache_clean(int file, uint64_t offset, uint64_t length)
{
	struct counts counts;
	int error = look(file, offset, length, &counts);

	if (error || (!counts.dirty && !counts.writeback))
		return error;
	return write_back(file, offset, length);
}

int pi_cache_drop(int file, uint64_t offset, uint64_t length)
{
	struct counts counts;
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

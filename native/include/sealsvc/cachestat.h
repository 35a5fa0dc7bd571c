/* cachestat(2), since v6.5. Its structures are not in the headers of older systems.
 *
 * It is never asked about a file with DAX: mm/filemap.c filemap_cachestat() takes the DAX entries of such
 * a mapping for shadows of evicted pages, and with the multi-generational LRU workingset_test_recent()
 * follows them to nowhere: the kernel oopses (seen on v6.18). There is no page cache to ask about. */
#ifndef SEALSVC_CACHESTAT_H
#define SEALSVC_CACHESTAT_H

#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

/* Pages. */
struct seal_cache_counts {
	uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

/* What is cached of `length` bytes (0: to the end) from `offset`: 0 or -errno. */
static inline int seal_cachestat(int fd, uint64_t offset, uint64_t length,
				 struct seal_cache_counts *out)
{
	struct {
		uint64_t offset, length;
	} range = {offset, length};
	struct statx stx;

	memset(out, 0, sizeof(*out));
	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0)
		return -errno;
	if (stx.stx_attributes & STATX_ATTR_DAX)
		return 0;
	return syscall(SYS_cachestat, fd, &range, out, 0) < 0 ? -errno : 0;
}

#endif

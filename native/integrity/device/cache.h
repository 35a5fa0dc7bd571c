/* The page cache of a file whose blocks are read and written underneath it. */
#ifndef SEALSVC_PI_CACHE_H
#define SEALSVC_PI_CACHE_H

#include <stdint.h>

struct pi_cache {
	uint64_t cached; /* pages */
	uint64_t dirty;	 /* and under writeback; at most so many */
};

/* What is cached of a range: by cachestat(2), or where a filter of system calls that does not know it yet
 * answers EPERM (systemd 252), by a mapping that is there for the moment; always so with `mapping`. */
int pi_cache_look(int file, uint64_t offset, uint64_t length, int mapping, struct pi_cache *out);

/* Writes the range back and drops it from the page cache, as an O_DIRECT write of the file system does
 * before and after (mm/filemap.c kiocb_invalidate_pages). 0, or -errno: EBUSY (pages are mapped or held,
 * and stay), EIO of the write-back. Fast when nothing is cached: one cachestat(2). */
int pi_cache_drop(int file, uint64_t offset, uint64_t length);

/* Writes the range back: enough before a read. */
int pi_cache_clean(int file, uint64_t offset, uint64_t length);

#endif

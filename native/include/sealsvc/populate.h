/* Write faults without writing. */
#ifndef SEALSVC_POPULATE_H
#define SEALSVC_POPULATE_H

#include <stdint.h>

/* Have the file system handle a write to every page of [offset, offset + length) of fd without
 * changing a byte of it: MADV_POPULATE_WRITE (Linux 5.14) on a shared mapping. Holes get blocks,
 * unwritten extents become written once fsync has run, and data that others write meanwhile is not
 * lost, as it would be if zeros were written. The offset is a multiple of the page size; the range
 * lies inside the file. 0 or -errno (-EFAULT: the file was truncated meanwhile). */
int seal_populate_write(int fd, uint64_t offset, uint64_t length);

#endif

/* Pins: a page reference in a pipe makes a file system on DAX wait before it changes a file's blocks. */
#ifndef SEALSVC_PIN_H
#define SEALSVC_PIN_H

#include <stddef.h>
#include <stdint.h>

#include "sealsvc/task_look.h"

/* Put a reference to the page of fd at `offset` (bytes, page-aligned, inside the file) into a new pipe.
 * While it is there, whatever would change the file's map waits in dax_break_layout(): one page is
 * enough, since file systems wait for all pages of the mapping. Closing both ends lets go. 0 or -errno. */
int seal_pin(int fd, uint64_t offset, int pipe_ends[2]);

/* Whether the lock that reads take (XFS_IOLOCK, inode->i_rwsem) cannot be had at once: a read that does not
 * wait says so (xfs_ilock_iocb, ext4_dax_read_iter). Whoever waits on a pin holds it, by whatever system call,
 * kernel thread or overlay it came, and so does a clone that spins on one in
 * xfs_mmaplock_two_inodes_and_break_dax_layout(); but so does, for a moment, anybody who writes. */
int seal_pin_contended(int fd, uint64_t offset);

struct seal_pin_waiter {
	int32_t tid, tgid;
	struct seal_syscall call;
};

/* Tasks that wait in the kernel for pages of DAX to be let go, at most max. Returns how many there are,
 * or -errno. Needs CAP_SYS_PTRACE to see others'. */
int64_t seal_pin_waiters(struct seal_pin_waiter *out, size_t max);

#endif

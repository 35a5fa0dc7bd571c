/* A look at processes that cannot be stopped by one of them. */
#ifndef SEALSVC_KERNEL_WALK_H
#define SEALSVC_KERNEL_WALK_H

#include <stddef.h>
#include <stdint.h>

/* What was found: `count` rows of `size` bytes each. */
struct walk_rows {
	char *at;
	size_t count, room, size;
};

/* Room for one more row, zeroed; NULL: no memory. */
void *seal_walk_add(struct walk_rows *rows);

/* What to look for, and how. Copied for the threads that look: they may outlive the call. */
struct walk {
	size_t row_size;
	uint64_t device, inode, start, end;
	int except_pid;
	/* Adds rows for one process: 0, or -errno, when nothing can be said about it. `by_text`: do not use
	 * PROCMAP_QUERY. */
	int (*look)(const struct walk *walk, int pid, int by_text, struct walk_rows *rows);
	/* Adds the row for a process that could not be looked at (`error`): 0 or -errno. */
	int (*unknown)(int pid, int error, struct walk_rows *rows);
};

/* Looks at the process `pid`, or at all (0). The caller frees rows->at. 0, or -errno.
 *
 * A task that holds another's mmap_lock, or stops it within execve (exec_update_lock), blocks every reader of
 * its maps uninterruptibly, for any length of time. So threads look, one after the other: a thread that needs
 * longer than SEAL_WALK_PATIENCE for a process is abandoned, and ends when the kernel lets it go. Until then
 * nobody looks at that process again. */
int seal_walk(const struct walk *walk, int pid, struct walk_rows *rows);

#define SEAL_WALK_PATIENCE 250 /* milliseconds */
#define SEAL_WALK_LOST                                                                             \
	64 /* threads left behind at a time; with more, nothing can be said any more */

#endif

/* An io_uring with 128-byte entries, by system calls alone (io_uring(7)): the commands of ublk need
 * them, and a library that is embedded should not bring another. One thread at a time. */
#ifndef SEALSVC_UBLK_URING_H
#define SEALSVC_UBLK_URING_H

#include <linux/io_uring.h>
#include <stddef.h>
#include <stdint.h>

struct uring {
	int fd;
	unsigned *sq_head, *sq_tail, *cq_head, *cq_tail;
	unsigned sq_mask, cq_mask;
	unsigned queued; /* filled in, not submitted */
	unsigned char *entries;
	struct io_uring_cqe *completions;
	void *rings;
	size_t rings_size, entries_size;
};

/* Room for `entries` submissions at once and `completions` that nobody has read: both are rounded up to
 * a power of two. Returns 0 or a negative errno. */
int uring_open(struct uring *ring, unsigned entries, unsigned completions);
void uring_close(struct uring *ring);

/* An empty entry of 128 bytes to fill in; it goes with the next uring_enter. NULL: the kernel takes none
 * now. */
struct io_uring_sqe *uring_entry(struct uring *ring);

/* Submits what was filled in and waits until `wanted` completions are there, for at most `milliseconds`
 * (negative: no limit). 0, or a negative errno: -ETIME, -EINTR. */
int uring_enter(struct uring *ring, unsigned wanted, int milliseconds);

/* Takes the next completion: 1, or 0 when there is none. */
int uring_next(struct uring *ring, struct io_uring_cqe *completion);

#endif

#include "uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ENTRY_BYTES 128

int uring_open(struct uring *ring, unsigned entries, unsigned completions)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP |
			 IORING_SETUP_COOP_TASKRUN,
		.cq_entries = completions,
	};
	size_t sq_size, cq_size;
	unsigned *array;
	char *rings;

	*ring = (struct uring){.fd = -1};
	ring->fd = (int)syscall(SYS_io_uring_setup, entries, &params);
	if (ring->fd < 0)
		return -errno;
	sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
	cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	ring->rings_size = sq_size > cq_size ? sq_size : cq_size;
	ring->entries_size = (size_t)params.sq_entries * ENTRY_BYTES;
	/* One mapping for both rings: IORING_FEAT_SINGLE_MMAP, since Linux 5.4. */
	rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		     ring->fd, IORING_OFF_SQ_RING);
	ring->rings = rings;
	ring->entries = mmap(NULL, ring->entries_size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
	if (ring->rings == MAP_FAILED || ring->entries == MAP_FAILED) {
		int error = errno;

		uring_close(ring);
		return -error;
	}
	ring->sq_head = (unsigned *)(rings + params.sq_off.head);
	ring->sq_tail = (unsigned *)(rings + params.sq_off.tail);
	ring->sq_mask = params.sq_entries - 1;
	ring->cq_head = (unsigned *)(rings + params.cq_off.head);
	ring->cq_tail = (unsigned *)(rings + params.cq_off.tail);
	ring->cq_mask = params.cq_entries - 1;
	ring->completions = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
	array = (unsigned *)(rings + params.sq_off.array);
	for (unsigned i = 0; i < params.sq_entries; i++)
		array[i] = i;
	return 0;
}

void uring_close(struct uring *ring)
{
	if (ring->entries && ring->entries != MAP_FAILED)
		munmap(ring->entries, ring->entries_size);
	if (ring->rings && ring->rings != MAP_FAILED)
		munmap(ring->rings, ring->rings_size);
	if (ring->fd >= 0)
		close(ring->fd);
	*ring = (struct uring){.fd = -1};
}

struct io_uring_sqe *uring_entry(struct uring *ring)
{
	unsigned tail = *ring->sq_tail;
	struct io_uring_sqe *entry;

	if (tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) > ring->sq_mask) {
		uring_enter(ring, 0, 0);
		if (tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE) > ring->sq_mask)
			return NULL;
	}
	entry = (struct io_uring_sqe *)(ring->entries + (tail & ring->sq_mask) * ENTRY_BYTES);
	memset(entry, 0, ENTRY_BYTES);
	/* Only uring_enter, by this thread, has the kernel look at the tail. */
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	ring->queued++;
	return entry;
}

int uring_enter(struct uring *ring, unsigned wanted, int milliseconds)
{
	struct __kernel_timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000LL};
	struct io_uring_getevents_arg limit = {.ts = (uintptr_t)&time};
	unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
	long taken;

	if (milliseconds < 0 || wanted == 0)
		limit.ts = 0;
	taken = syscall(SYS_io_uring_enter, ring->fd, ring->queued, wanted, flags, &limit,
			sizeof(limit));
	if (taken < 0)
		return -errno;
	ring->queued -= (unsigned)taken;
	return 0;
}

int uring_next(struct uring *ring, struct io_uring_cqe *completion)
{
	unsigned head = *ring->cq_head;

	if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
		return 0;
	*completion = ring->completions[head & ring->cq_mask];
	__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
	return 1;
}

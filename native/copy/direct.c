/* O_DIRECT through one io_uring: each slot of the buffer reads its block, then writes it. Blocks end out
 * of order; what counts as done is the part from the start that has no gap. */
#include "sealsvc/copy.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST_DEPTH 64

struct ring {
	int fd;
	struct io_uring_params params;
	uint8_t *rings;
	size_t rings_size;
	struct io_uring_sqe *entries;
	size_t entries_size;
};

static uint32_t *field(const struct ring *ring, uint32_t offset)
{
	return (uint32_t *)(void *)(ring->rings + offset);
}

static void close_ring(struct ring *ring)
{
	if (ring->entries)
		munmap(ring->entries, ring->entries_size);
	if (ring->rings)
		munmap(ring->rings, ring->rings_size);
	if (ring->fd >= 0)
		close(ring->fd);
}

static void *map_ring(int fd, size_t size, uint64_t what)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
			(off_t)what);

	return at == MAP_FAILED ? NULL : at;
}

static int open_ring(struct ring *ring, uint32_t depth)
{
	const struct io_uring_params *p = &ring->params;
	size_t submissions, completions;

	memset(ring, 0, sizeof(*ring));
	ring->fd = (int)syscall(SYS_io_uring_setup, depth, &ring->params);
	if (ring->fd < 0)
		return errno;
	/* Before v5.4 the two rings were two mappings: who has those kernels copies plainly. */
	if (!(p->features & IORING_FEAT_SINGLE_MMAP)) {
		close_ring(ring);
		return EOPNOTSUPP;
	}
	submissions = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
	completions = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	ring->rings_size = submissions > completions ? submissions : completions;
	ring->entries_size = p->sq_entries * sizeof(struct io_uring_sqe);
	ring->rings = map_ring(ring->fd, ring->rings_size, IORING_OFF_SQ_RING);
	ring->entries = map_ring(ring->fd, ring->entries_size, IORING_OFF_SQES);
	if (ring->rings && ring->entries)
		return 0;
	close_ring(ring);
	return ENOMEM;
}

struct slot {
	uint64_t offset; /* in the copy */
	uint32_t length, moved;
	int writing;
};

struct state {
	const struct seal_copy *copy;
	struct ring ring;
	struct slot slots[MOST_DEPTH];
	uint8_t *buffer;
	uint32_t block, depth, flying, queued;
	uint64_t next; /* of the copy: from here on nothing has begun */
	uint64_t lowest_failure;
	int error;
};

static void queue(struct state *s, uint32_t number)
{
	struct ring *ring = &s->ring;
	const struct slot *slot = &s->slots[number];
	uint32_t *tail = field(ring, ring->params.sq_off.tail);
	uint32_t at = *tail & *field(ring, ring->params.sq_off.ring_mask);
	uint64_t base = slot->writing ? s->copy->destination_offset : s->copy->source_offset;

	ring->entries[at] = (struct io_uring_sqe){
		.opcode = slot->writing ? IORING_OP_WRITE : IORING_OP_READ,
		.fd = slot->writing ? s->copy->destination : s->copy->source,
		.off = base + slot->offset + slot->moved,
		.addr = (uint64_t)(uintptr_t)(s->buffer + (uint64_t)number * s->block +
					      slot->moved),
		.len = slot->length - slot->moved,
		.user_data = number,
	};
	field(ring, ring->params.sq_off.array)[at] = at;
	/* Release: the kernel reads the entry once it sees the tail. */
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	s->queued++;
	s->flying++;
}

static void begin(struct state *s, uint32_t number)
{
	uint64_t rest = s->copy->length - s->next;

	if (!rest || s->error || s->lowest_failure != UINT64_MAX)
		return;
	s->slots[number] = (struct slot){
		.offset = s->next,
		.length = rest < s->block ? (uint32_t)rest : s->block,
	};
	s->next += s->slots[number].length;
	queue(s, number);
}

/* Nothing new is begun after the first failure; the lowest one decides what is reported. */
static void fail(struct state *s, const struct slot *slot, int error)
{
	uint64_t at = slot->offset + (slot->writing ? slot->moved : 0);

	if (at < s->lowest_failure) {
		s->lowest_failure = at;
		s->error = error;
	}
}

static void completed(struct state *s, uint32_t number, int32_t result)
{
	struct slot *slot = &s->slots[number];

	s->flying--;
	if (result == -EINTR || result == -EAGAIN) {
		queue(s, number);
		return;
	}
	if (result <= 0) {
		fail(s, slot, result ? -result : slot->writing ? EIO : 0);
		return;
	}
	slot->moved += (uint32_t)result;
	if (slot->moved < slot->length) { /* short: from that byte on; EINVAL if unaligned there */
		queue(s, number);
		return;
	}
	if (!slot->writing) {
		slot->writing = 1;
		slot->moved = 0;
		queue(s, number);
		return;
	}
	begin(s, number);
}

static void reap(struct state *s)
{
	struct ring *ring = &s->ring;
	uint32_t *head = field(ring, ring->params.cq_off.head);
	uint32_t mask = *field(ring, ring->params.cq_off.ring_mask);
	const struct io_uring_cqe *entries = (const void *)(ring->rings + ring->params.cq_off.cqes);
	/* Acquire: the entries are written before the tail. */
	uint32_t tail = __atomic_load_n(field(ring, ring->params.cq_off.tail), __ATOMIC_ACQUIRE);

	while (*head != tail) {
		struct io_uring_cqe entry = entries[*head & mask];

		__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
		completed(s, (uint32_t)entry.user_data, entry.res);
	}
}

/* Buffers are the kernel's until their requests have ended: nothing returns before that. */
static void drive(struct state *s)
{
	for (uint32_t i = 0; i < s->depth; i++)
		begin(s, i);
	while (s->flying) {
		long n = syscall(SYS_io_uring_enter, s->ring.fd, s->queued, 1,
				 IORING_ENTER_GETEVENTS, NULL, 0);

		if (n > 0)
			s->queued -= (uint32_t)n;
		reap(s);
	}
}

struct seal_copied seal_copy_direct(const struct seal_copy *copy, uint32_t block, uint32_t depth)
{
	struct state s = {.copy = copy, .block = block, .lowest_failure = UINT64_MAX};
	size_t size;
	int error;

	s.depth = depth < 1 ? 1 : depth > MOST_DEPTH ? MOST_DEPTH : depth;
	size = (size_t)block * s.depth;
	error = open_ring(&s.ring, s.depth);
	if (error)
		return (struct seal_copied){0, error};
	s.buffer = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s.buffer == MAP_FAILED) {
		close_ring(&s.ring);
		return (struct seal_copied){0, ENOMEM};
	}
	drive(&s);
	munmap(s.buffer, size);
	close_ring(&s.ring);
	if (s.lowest_failure == UINT64_MAX)
		return (struct seal_copied){copy->length, 0};
	return (struct seal_copied){s.lowest_failure, s.error};
}

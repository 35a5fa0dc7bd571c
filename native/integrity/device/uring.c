#include "uring.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* include/uapi/linux/io_uring.h since 6.14; older headers lack them. */
#define FEAT_RW_ATTR (1u << 16)
#define RW_ATTR_FLAG_PI 1u
#define DSYNC 0x2u /* RWF_DSYNC */

struct attr_pi {
	uint16_t flags;
	uint16_t app_tag;
	uint32_t length;
	uint64_t address;
	uint64_t seed;
	uint64_t reserved;
};

/* The 64 bytes of struct io_uring_sqe as IORING_OP_READV and WRITEV use them. */
struct sqe {
	uint8_t opcode, flags;
	uint16_t ioprio;
	int32_t fd;
	uint64_t offset, address;
	uint32_t count, rw_flags;
	uint64_t user_data;
	uint16_t buffer, personality;
	int32_t file_index;
	uint64_t attr_address, attr_types;
};

_Static_assert(sizeof(struct attr_pi) == 32, "struct io_uring_attr_pi");
_Static_assert(sizeof(struct sqe) == 64, "struct io_uring_sqe");

static int enter(const struct pi_ring *ring, uint32_t submit, uint32_t wait)
{
	long n = syscall(SYS_io_uring_enter, ring->fd, submit, wait, IORING_ENTER_GETEVENTS, NULL,
			 0);

	return n < 0 ? -errno : (int)n;
}

static int map_ring(struct pi_ring *ring, const struct io_uring_params *params)
{
	uint64_t cq = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	uint64_t sq = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
	char *at;

	ring->rings_size = cq > sq ? cq : sq;
	ring->sqes_size = params->sq_entries * sizeof(struct sqe);
	at = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		  ring->fd, IORING_OFF_SQ_RING);
	if (at == MAP_FAILED)
		return -errno;
	ring->rings = at;
	ring->sqes = mmap(NULL, ring->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			  ring->fd, IORING_OFF_SQES);
	if (ring->sqes == MAP_FAILED) {
		ring->sqes = NULL;
		return -errno;
	}
	ring->sq_tail = (uint32_t *)(at + params->sq_off.tail);
	ring->sq_mask = (uint32_t *)(at + params->sq_off.ring_mask);
	ring->sq_array = (uint32_t *)(at + params->sq_off.array);
	ring->cq_head = (uint32_t *)(at + params->cq_off.head);
	ring->cq_tail = (uint32_t *)(at + params->cq_off.tail);
	ring->cq_mask = (uint32_t *)(at + params->cq_off.ring_mask);
	ring->cqes = at + params->cq_off.cqes;
	return 0;
}

int pi_ring_open(struct pi_ring *ring)
{
	struct io_uring_params params = {0};
	int error;

	memset(ring, 0, sizeof(*ring));
	ring->fd = (int)syscall(SYS_io_uring_setup, PI_RING_ENTRIES, &params);
	if (ring->fd < 0)
		return -errno;
	/* IORING_FEAT_SINGLE_MMAP is there since 5.4. */
	error = params.features & FEAT_RW_ATTR ? map_ring(ring, &params) : -EOPNOTSUPP;
	if (error)
		pi_ring_close(ring);
	return error;
}

void pi_ring_close(struct pi_ring *ring)
{
	if (ring->sqes)
		munmap(ring->sqes, ring->sqes_size);
	if (ring->rings)
		munmap(ring->rings, ring->rings_size);
	if (ring->fd >= 0)
		close(ring->fd);
	memset(ring, 0, sizeof(*ring));
	ring->fd = -1;
}

static void fill(struct sqe *sqe, struct attr_pi *attr, const struct pi_command *command,
		 const struct pi_transfer *transfer, uint32_t number)
{
	*attr = (struct attr_pi){
		.flags = command->checks,
		.app_tag = command->app_tag,
		.length = transfer->pi_length,
		.address = (uintptr_t)transfer->pi,
		.seed = transfer->seed,
	};
	*sqe = (struct sqe){
		.opcode = command->write ? IORING_OP_WRITEV : IORING_OP_READV,
		.fd = command->device,
		.offset = transfer->position,
		.address = (uintptr_t)&transfer->data,
		.count = 1,
		.rw_flags = command->dsync ? DSYNC : 0,
		.user_data = number,
		.attr_address = (uintptr_t)attr,
		.attr_types = RW_ATTR_FLAG_PI,
	};
}

/* Takes what has completed; how many. */
static uint32_t reap(struct pi_ring *ring, struct pi_transfer *transfers)
{
	uint32_t head = *ring->cq_head, tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
	const struct io_uring_cqe *cqes = ring->cqes;
	uint32_t taken = tail - head;

	for (; head != tail; head++) {
		const struct io_uring_cqe *cqe = &cqes[head & *ring->cq_mask];

		transfers[cqe->user_data].result = cqe->res;
	}
	__atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
	return taken;
}

int pi_ring_run(struct pi_ring *ring, const struct pi_command *command,
		struct pi_transfer *transfers, uint32_t count)
{
	struct attr_pi attrs[PI_RING_ENTRIES];
	struct sqe *sqes = ring->sqes;
	uint32_t tail = *ring->sq_tail, submitted = 0, done = 0;
	int error = 0;

	if (!count || count > PI_RING_ENTRIES)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++, tail++) {
		uint32_t slot = tail & *ring->sq_mask;

		transfers[i].result = -EIO;
		fill(&sqes[slot], &attrs[i], command, &transfers[i], i);
		ring->sq_array[slot] = slot;
	}
	__atomic_store_n(ring->sq_tail, tail, __ATOMIC_RELEASE);
	/* The kernel writes into the transfers' memory until the last one has ended: what was submitted is
	 * waited for, whatever else fails. */
	while (done < count) {
		int n = enter(ring, count - submitted, 1);

		if (n >= 0) {
			submitted += (uint32_t)n;
		} else if (n != -EINTR && n != -EAGAIN && n != -EBUSY) {
			/* The rest stays in the submission queue: this ring is not to be used again. */
			error = n;
			count = submitted;
		}
		done += reap(ring, transfers);
	}
	return error;
}

/* Reads and writes of a block device with protection information, by io_uring. */
#ifndef SEALSVC_PI_URING_H
#define SEALSVC_PI_URING_H

#include <stdint.h>
#include <sys/uio.h>

#define PI_RING_ENTRIES 64

struct pi_ring {
	int fd;
	uint32_t *sq_tail, *sq_mask, *cq_head, *cq_tail, *cq_mask;
	void *sqes, *cqes, *rings;
	uint32_t *sq_array;
	uint64_t rings_size, sqes_size;
};

/* One contiguous piece of the device. `result` is bytes or -errno. */
struct pi_transfer {
	struct iovec data;
	void *pi;
	uint32_t pi_length;
	uint64_t position; /* bytes from the start of the device */
	uint64_t seed;
	int32_t result;
};

/* What all transfers of a batch have in common. `checks` are IO_INTEGRITY_CHK_*. */
struct pi_command {
	int device;
	int write;
	int dsync;
	uint16_t checks;
	uint16_t app_tag;
};

/* 0 or -errno: EOPNOTSUPP (no IORING_FEAT_RW_ATTR: a kernel before 6.14), EPERM (kernel.io_uring_disabled). */
int pi_ring_open(struct pi_ring *ring);
void pi_ring_close(struct pi_ring *ring);

/* Submits `count` transfers (at most PI_RING_ENTRIES) and waits until all have ended, whatever they
 * ended with: no I/O is in flight on return. 0, or -errno when the ring itself failed. */
int pi_ring_run(struct pi_ring *ring, const struct pi_command *command,
		struct pi_transfer *transfers, uint32_t count);

#endif

/* A request on a sealed range, carried out on the block device. */
#ifndef SEALSVC_PI_TRANSFER_H
#define SEALSVC_PI_TRANSFER_H

#include "channel.h"
#include "pi.h"
#include "uring.h"

/* A piece of the file that lies in one piece on the device. */
struct pi_extent {
	uint64_t logical, physical, length;
};

struct pi_target {
	int device, file;
	int writable;
	int broken; /* the ring failed: nothing more can be asked of it */
	uint64_t offset, length;
	struct pi_extent *extents;
	uint32_t extent_count;
	struct seal_pi_capability layout;
	struct seal_pi_profile profile; /* of its tuples */
	struct pi_ring ring;
	unsigned char *tuples; /* private: the holder cannot write to them while they are in use */
	uint64_t tuples_size;
};

/* In the shared memory. */
struct pi_buffers {
	unsigned char *data, *pi;
};

int pi_target_open(struct pi_target *target, const struct seal_channel_options *options);
void pi_target_release(struct pi_target *target);

/* 0, or why the request cannot be carried out: -EINVAL, -EBADF (a write, and the seal is read-only),
 * -EMSGSIZE, -ERANGE (outside of the sealed range). */
int pi_target_refuses(const struct pi_target *target, const struct seal_channel_request *request);

/* No I/O is in flight on return. 0 or -errno; with EILSEQ `error` is filled in. After a read the fields
 * found are in `buffers->pi`, also when they are wrong; a write fills in what it generated. */
int pi_target_run(struct pi_target *target, const struct seal_channel_request *request,
		  const struct pi_buffers *buffers, struct seal_channel_error *error);

#endif

/* A PI channel: the service's end of the device path of one sealed file.
 *
 * One thread serves it: it takes a request from the socket, does its I/O on the block device, and answers,
 * one request after the other. The memory for data and PI is shared with the holder, who may write to
 * it at any time: whatever decides where I/O goes is copied first. */
#ifndef SEALSVC_PI_CHANNEL_H
#define SEALSVC_PI_CHANNEL_H

#include <stdint.h>

#include "capability.h"
#include "seal_channel.h"

struct seal_extent;
struct seal_channel;

/* Everything stays the caller's but `device`, `socket` and `memory`, which the channel closes. */
struct seal_channel_options {
	int device;	   /* the block device under the file, O_DIRECT */
	int file;	   /* for its page cache; open as long as the channel is */
	int socket;	   /* SOCK_SEQPACKET */
	int memory;	   /* a memfd sealed with F_SEAL_SHRINK: reading it never raises SIGBUS */
	uint64_t size;	   /* of the memory, bytes */
	uint32_t writable; /* the seal allows writes */
	uint64_t offset, length; /* the sealed range of the file */
	const struct seal_extent *extents;
	uint32_t extent_count;
	struct seal_pi_capability layout;
};

/* What seal_channel_serve returns with. */
enum seal_channel_served {
	SEAL_CHANNEL_ENDED =
		0, /* the holder closed its end, or the channel was stopped: nothing is in flight */
	SEAL_CHANNEL_FAILED =
		1, /* `request` was answered with an error that an operator should know of */
};

struct seal_channel_report {
	struct seal_channel_request request;
	struct seal_channel_answer answer;
};

/* Takes the descriptors over when it returns 0; else -errno, and they stay the caller's. */
int seal_channel_open(const struct seal_channel_options *options, struct seal_channel **channel);

/* Serves until there is something to report: enum seal_channel_served. In a thread of its own, which calls it
 * again after SEAL_CHANNEL_FAILED. */
int seal_channel_serve(struct seal_channel *channel, struct seal_channel_report *report);

/* From any thread: what is in flight is finished and answered; every later request is answered with
 * ESTALE; then seal_channel_serve returns SEAL_CHANNEL_ENDED. Does not wait. */
void seal_channel_stop(struct seal_channel *channel);

/* After seal_channel_serve has returned SEAL_CHANNEL_ENDED, or was never called. */
void seal_channel_close(struct seal_channel *channel);

#endif

/* Block devices whose requests your program serves (Linux ublk, Documentation/block/ublk.rst), for
 * programs that have an event loop, threads and buffers of their own. The library forks nothing, starts
 * no thread, installs no signal handler, allocates nothing per request, and does not ask how you serve a
 * request. Functions return 0 (or what they say) or a negative errno.
 *
 *   control   /dev/ublk-control: add, start, stop, delete devices. One for any number of devices.
 *   device    one /dev/ublkbN, served through /dev/ublkcN.
 *   worker    an io_uring of one thread, which serves any number of queues of any devices.
 *   queue     requests of one hardware queue; all functions that take one belong to the worker's thread,
 *             but for ublk_complete_elsewhere.
 *
 * examples/null.c is a whole program of one page. Needs Linux 6.4, CAP_SYS_ADMIN and ublk_drv. */
#ifndef SEALSVC_UBLK_H
#define SEALSVC_UBLK_H

#include <stddef.h>
#include <stdint.h>

#include "uapi.h"

struct ublk_control;
struct ublk_worker;
struct ublk_queue;

struct ublk_config {
	int id;		    /* N of /dev/ublkbN, or -1 for the first free one */
	unsigned queues;    /* the kernel makes at most one for each CPU of them */
	unsigned depth;	    /* requests at once in each queue, 1 to 4096 */
	unsigned max_bytes; /* of one request: a multiple of the page size */
	uint64_t flags;	    /* UBLK_F_*; what the kernel does not know is cleared */
	uint64_t size;	    /* bytes, a multiple of block_size */
	unsigned block_size;
	unsigned physical_block_size;	 /* 0: block_size */
	int read_only, write_cache;	 /* write_cache: FLUSH and FUA requests come */
	unsigned discard_granularity;	 /* bytes; 0: no DISCARD requests */
	unsigned max_discard_bytes;	 /* of one DISCARD request */
	unsigned max_write_zeroes_bytes; /* 0: no WRITE_ZEROES requests */
};

/* After ublk_add or ublk_recover; `info` is what the kernel granted. */
struct ublk_device {
	struct ublksrv_ctrl_dev_info info;
	struct ublk_params params;
	int fd; /* /dev/ublkcN, or -1 */
};

/* A control command under way. Until it has ended, it, its device and the control must stay. */
struct ublk_command {
	int ended;
	int result; /* a negative errno, or >= 0 */
};

int ublk_control_open(struct ublk_control **control);
void ublk_control_close(struct ublk_control *control);
/* Becomes readable when a command may have ended: then call ublk_control_reap. */
int ublk_control_fd(const struct ublk_control *control);
/* Marks the commands that ended; how many did. */
int ublk_control_reap(struct ublk_control *control);
/* Waits until `command` has ended, at most `milliseconds` (negative: no limit). Its result, or
 * -ETIMEDOUT: then the kernel still works on it. For threads that serve no queue of that device. */
int ublk_wait(struct ublk_control *control, const struct ublk_command *command, int milliseconds);

/* The UBLK_F_* that the kernel has. */
int ublk_features(struct ublk_control *control, uint64_t *features);

/* Adds a device and opens /dev/ublkcN, within `milliseconds`. -ETIMEDOUT: the kernel did not answer.
 * Linux 6.18.4, 6.18.5 and Ubuntu's 6.17 wait for ever here (529d4d632788 without 011af85ccd87; right
 * again in 6.18.6): `device` must then stay, and the process may not be able to exit. The wait is in a
 * worker thread of the kernel, never in the caller. */
int ublk_add(struct ublk_control *control, const struct ublk_config *config,
	     struct ublk_device *device, int milliseconds);
/* Begins to start a device: ends when /dev/ublkbN is there. All queues must have been opened
 * (ublk_queue_open), and be served meanwhile: the kernel reads the partition table. */
int ublk_start(struct ublk_control *control, struct ublk_device *device,
	       struct ublk_command *command);
/* Begins to stop a device; /dev/ublkbN goes. Its queues must be served until UBLK_GONE. */
int ublk_stop(struct ublk_control *control, uint32_t id, struct ublk_command *command);
/* Begins to delete a stopped device. Ends only after ublk_close and ublk_queue_close of all. */
int ublk_delete(struct ublk_control *control, uint32_t id, struct ublk_command *command);
/* Begins to take the queues away from this server without any failed request: those that are being
 * served may end within `milliseconds` (else -EBUSY), new ones wait for whoever recovers. Needs
 * UBLK_F_QUIESCE (Linux 6.16) and UBLK_F_USER_RECOVERY. */
int ublk_quiesce(struct ublk_control *control, uint32_t id, unsigned milliseconds,
		 struct ublk_command *command);
/* Begins to change the size, in bytes. Linux 6.16, UBLK_F_UPDATE_SIZE. */
int ublk_resize(struct ublk_control *control, uint32_t id, uint64_t size,
		struct ublk_command *command);
int ublk_info(struct ublk_control *control, uint32_t id, struct ublksrv_ctrl_dev_info *info);

/* Takes over a device whose server died or was quiesced (UBLK_F_USER_RECOVERY): -EBUSY until the
 * kernel has put its requests aside, try again. Then open its queues, and ublk_recovered begins to hand
 * out what waits; with UBLK_F_USER_RECOVERY_REISSUE also what the dead server had not answered. */
int ublk_recover(struct ublk_control *control, uint32_t id, struct ublk_device *device);
int ublk_recovered(struct ublk_control *control, struct ublk_device *device,
		   struct ublk_command *command);
/* Closes /dev/ublkcN. */
void ublk_close(struct ublk_device *device);

enum ublk_event_kind {
	UBLK_REQUEST, /* serve `io`, then ublk_complete */
	UBLK_DATA, /* UBLK_F_NEED_GET_DATA: give a buffer for the write `io` with ublk_give_buffer */
	UBLK_USER,   /* your own entry of ublk_worker_entry ended: `user`, `result` */
	UBLK_GONE,   /* the queue gets no more requests: the device was stopped or quiesced */
	UBLK_FAILED, /* the kernel refused a command of `tag`: `result` is its errno */
};

struct ublk_event {
	enum ublk_event_kind kind;
	unsigned tag;
	int result;
	uint64_t user;
	struct ublk_queue *queue;
	const struct ublksrv_io_desc *io; /* op_flags, start_sector and nr_sectors, of 512 bytes */
};

/* `in_flight`: the sum of the depths of its queues. */
int ublk_worker_open(unsigned in_flight, struct ublk_worker **worker);
void ublk_worker_close(struct ublk_worker *worker); /* its queues must have been closed */
/* Becomes readable when ublk_reap has something; a wait for it may end with EINTR as well. */
int ublk_worker_fd(const struct ublk_worker *worker);
/* Sends what was completed and waits for events, at most `milliseconds` (0: no wait, negative: no
 * limit). Fills in up to `max` events: how many; 0 when the time is over. */
int ublk_reap(struct ublk_worker *worker, struct ublk_event *events, unsigned max,
	      int milliseconds);
/* An entry of the same io_uring for your own operation; it ends as UBLK_USER with `user`, which has 48
 * bits. NULL: no room now. Do not set its user_data. */
struct io_uring_sqe *ublk_worker_entry(struct ublk_worker *worker, uint64_t user);

/* Opens queue `number` of the device, with a buffer of info.max_io_buf_bytes for each tag in
 * `buffers` (depth of them), or NULL where none is given in advance: UBLK_F_NEED_GET_DATA,
 * UBLK_F_USER_COPY. From then on the calling thread gets its requests. */
int ublk_queue_open(struct ublk_worker *worker, const struct ublk_device *device, unsigned number,
		    void *const *buffers, void *context, struct ublk_queue **queue);
void ublk_queue_close(struct ublk_queue *queue); /* after UBLK_GONE, or to let the device go */
void *ublk_queue_context(const struct ublk_queue *queue);
struct ublk_worker *ublk_queue_worker(const struct ublk_queue *queue);
void *ublk_buffer(const struct ublk_queue *queue, unsigned tag);
/* The buffer of `tag`, for a write with its data (after UBLK_DATA; a UBLK_REQUEST follows), or for a
 * read before ublk_complete. It is the caller's again when the request is completed. */
int ublk_give_buffer(struct ublk_queue *queue, unsigned tag, void *buffer);
/* Ends a request: `result` is the number of bytes, or a negative errno; 0 for flush and discard. */
int ublk_complete(struct ublk_queue *queue, unsigned tag, int result);
/* The same, from any thread, in any number at once: the worker is woken and sends it. */
int ublk_complete_elsewhere(struct ublk_queue *queue, unsigned tag, int result);
/* UBLK_F_USER_COPY: moves bytes between a request and your memory, in any thread. The number of bytes,
 * or a negative errno. `_from` a write's data, `_to` a read's answer. */
long ublk_copy_from(const struct ublk_queue *queue, unsigned tag, void *to, size_t bytes,
		    uint64_t offset);
long ublk_copy_to(const struct ublk_queue *queue, unsigned tag, const void *from, size_t bytes,
		  uint64_t offset);

static inline unsigned ublk_op(const struct ublksrv_io_desc *io)
{
	return io->op_flags & 0xff;
}

#endif

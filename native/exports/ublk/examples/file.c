/* file PATH [RECOVER]: a file by io_uring, each request an operation in the ring that the requests come
 * from. The device outlives this program: killed, its requests wait, and `file PATH N` serves /dev/ublkbN on,
 * first what was not answered. Reads and writes may be done twice, so that is right for them. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "loop.h"

static int file;
static struct ublk_queue *queue; /* there is one */

static int prepare(struct io_uring_sqe *entry, const struct ublk_event *event)
{
	const struct ublksrv_io_desc *io = event->io;

	entry->fd = file;
	entry->off = io->start_sector * 512;
	entry->len = io->nr_sectors * 512;
	entry->addr = (uintptr_t)ublk_buffer(event->queue, event->tag);
	switch (ublk_op(io)) {
	case UBLK_IO_OP_READ:
		entry->opcode = IORING_OP_READ;
		return 0;
	case UBLK_IO_OP_WRITE:
		entry->opcode = IORING_OP_WRITE;
		entry->rw_flags = io->op_flags & UBLK_IO_F_FUA ? RWF_DSYNC : 0;
		return 0;
	case UBLK_IO_OP_FLUSH:
		entry->opcode = IORING_OP_FSYNC;
		entry->off = entry->addr = entry->len = 0;
		entry->fsync_flags = IORING_FSYNC_DATASYNC;
		return 0;
	case UBLK_IO_OP_WRITE_ZEROES:
		entry->opcode = IORING_OP_FALLOCATE;
		entry->addr = io->nr_sectors * 512ULL; /* the length stands here, the mode in len */
		entry->len = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
		return 0;
	default:
		return -EOPNOTSUPP;
	}
}

static void serve(const struct ublk_event *event, unsigned device)
{
	struct ublk_worker *worker = ublk_queue_worker(event->queue ? event->queue : queue);
	struct io_uring_sqe *entry;
	int error;

	(void)device;
	if (event->kind == UBLK_USER) {
		ublk_complete(queue, (unsigned)event->user, event->result);
		return;
	}
	queue = event->queue;
	entry = ublk_worker_entry(worker, event->tag);
	if (!entry) {
		ublk_complete(event->queue, event->tag, -ENOMEM);
		return;
	}
	error = prepare(entry, event);
	if (error < 0) {
		entry->opcode = IORING_OP_NOP; /* an entry cannot be taken back */
		ublk_complete(event->queue, event->tag, error);
	}
}

int main(int argc, char **argv)
{
	struct loop loop = {.devices = 1,
			    .recover = argc > 2 ? atoi(argv[2]) : -1,
			    .with_buffers = 1,
			    .event = serve};
	struct stat status;

	file = argc > 1 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
	if (file < 0 || fstat(file, &status) < 0) {
		fprintf(stderr, "usage: file PATH [DEVICE]\n");
		return 2;
	}
	loop.config = (struct ublk_config){
		.id = -1,
		.queues = 1,
		.depth = 64,
		.max_bytes = 512 << 10,
		.flags = UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE,
		.size = (uint64_t)status.st_size & ~4095ULL,
		.block_size = 4096,
		.write_cache = 1,
		.max_write_zeroes_bytes = 1 << 30,
	};
	return loop_run(&loop);
}

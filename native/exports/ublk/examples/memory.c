/* memory SIZE [DEVICES]: RAM disks, all of them in one thread. Buffers are given late: when a request has
 * come and its place in memory is known, and that place is the buffer. Nothing is copied but by the kernel. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "loop.h"

static char *memory;
static uint64_t size;

static char *place(const struct ublksrv_io_desc *io, unsigned device)
{
	return memory + device * size + io->start_sector * 512;
}

static void serve(const struct ublk_event *event, unsigned device)
{
	const struct ublksrv_io_desc *io = event->io;
	int bytes = (int)io->nr_sectors * 512;

	if (event->kind == UBLK_DATA) {
		ublk_give_buffer(event->queue, event->tag, place(io, device));
		return;
	}
	if (event->kind != UBLK_REQUEST)
		return;
	switch (ublk_op(io)) {
	case UBLK_IO_OP_READ:
		ublk_give_buffer(event->queue, event->tag, place(io, device));
		break;
	case UBLK_IO_OP_WRITE: /* the kernel has put the data there */
		break;
	case UBLK_IO_OP_DISCARD:
		bytes = -madvise(place(io, device), (size_t)bytes, MADV_DONTNEED);
		break;
	default:
		bytes = -EOPNOTSUPP;
	}
	ublk_complete(event->queue, event->tag, bytes);
}

int main(int argc, char **argv)
{
	struct loop loop = {
		.devices = argc > 2 ? (unsigned)atoi(argv[2]) : 1, .recover = -1, .event = serve};

	size = argc > 1 ? strtoull(argv[1], NULL, 0) & ~4095ULL : 64 << 20;
	memory = mmap(NULL, size * loop.devices, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return 1;
	loop.config = (struct ublk_config){.id = -1,
					   .queues = 1,
					   .depth = loop.devices > 1 ? 16 : 128,
					   .max_bytes = 512 << 10,
					   .flags = UBLK_F_NEED_GET_DATA,
					   .size = size,
					   .block_size = 4096,
					   .discard_granularity = 4096,
					   .max_discard_bytes = 1 << 30};
	return loop_run(&loop);
}

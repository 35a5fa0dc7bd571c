/* rpc SIZE [QUEUES]: a backend with threads of its own that answers when it pleases, as one behind RPC does:
 * requests are handed to THREADS of them, which have their own buffers, copy the data between those and the
 * request themselves (UBLK_F_USER_COPY), and complete it where they are, in any order. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "loop.h"

#define THREADS 4
#define MAX_BYTES (256 << 10)
#define ROOM 4096 /* more than the queues' depths together */

static struct call {
	struct ublk_queue *queue;
	unsigned tag;
	struct ublksrv_io_desc io;
} calls[ROOM];
static unsigned head, tail;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static char *store;

static long answer(const struct call *call, char *buffer)
{
	size_t bytes = call->io.nr_sectors * 512UL;
	char *place = store + call->io.start_sector * 512;
	long moved;

	switch (ublk_op(&call->io)) {
	case UBLK_IO_OP_READ:
		memcpy(buffer, place, bytes); /* what the RPC brought */
		return ublk_copy_to(call->queue, call->tag, buffer, bytes, 0);
	case UBLK_IO_OP_WRITE:
		moved = ublk_copy_from(call->queue, call->tag, buffer, bytes, 0);
		if (moved > 0)
			memcpy(place, buffer, (size_t)moved);
		return moved;
	default:
		return -EOPNOTSUPP;
	}
}

static void *backend(void *context)
{
	char *buffer = aligned_alloc(4096, MAX_BYTES);

	(void)context;
	for (;;) {
		struct call call;

		pthread_mutex_lock(&lock);
		while (head == tail)
			pthread_cond_wait(&more, &lock);
		call = calls[tail++ % ROOM];
		pthread_mutex_unlock(&lock);
		ublk_complete_elsewhere(call.queue, call.tag, (int)answer(&call, buffer));
	}
	return NULL;
}

static void serve(const struct ublk_event *event, unsigned device)
{
	(void)device;
	if (event->kind != UBLK_REQUEST)
		return;
	pthread_mutex_lock(&lock);
	calls[head++ % ROOM] = (struct call){event->queue, event->tag, *event->io};
	pthread_cond_signal(&more);
	pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
	uint64_t size = argc > 1 ? strtoull(argv[1], NULL, 0) & ~4095ULL : 64 << 20;
	struct loop loop = {.devices = 1,
			    .recover = -1,
			    .event = serve,
			    .config = {.id = -1,
				       .queues = argc > 2 ? (unsigned)atoi(argv[2]) : 2,
				       .depth = 64,
				       .max_bytes = MAX_BYTES,
				       .flags = UBLK_F_USER_COPY,
				       .size = size,
				       .block_size = 4096}};

	store = mmap(NULL, size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (store == MAP_FAILED)
		return 1;
	for (int i = 0; i < THREADS; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, backend, NULL) != 0)
			return 1;
	}
	return loop_run(&loop);
}

/* null SIZE: a block device that forgets what is written and reads as zeros, in one thread. Ends, and the
 * device with it, at ^C. The whole use of the library is here. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ublk.h"

#define DEPTH 64
#define MAX_BYTES (128 << 10)

static volatile sig_atomic_t ended;
static char zeros[MAX_BYTES], bin[MAX_BYTES];

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

static int check(int result, const char *what)
{
	if (result >= 0)
		return result;
	fprintf(stderr, "%s: %s\n", what, strerror(-result));
	exit(1);
}

static void serve(struct ublk_worker *worker, int milliseconds, int *gone)
{
	struct ublk_event events[DEPTH];
	int count = check(ublk_reap(worker, events, DEPTH, milliseconds), "reap");

	for (struct ublk_event *event = events; event < events + count; event++) {
		if (event->kind == UBLK_DATA) /* a write: where its data goes */
			ublk_give_buffer(event->queue, event->tag, bin);
		if (event->kind == UBLK_REQUEST) {
			if (ublk_op(event->io) == UBLK_IO_OP_READ)
				ublk_give_buffer(event->queue, event->tag, zeros);
			ublk_complete(event->queue, event->tag, (int)event->io->nr_sectors * 512);
		}
		if (event->kind == UBLK_GONE)
			*gone = 1;
	}
}

int main(int argc, char **argv)
{
	struct ublk_config config = {
		.id = -1,
		.queues = 1,
		.depth = DEPTH,
		.max_bytes = MAX_BYTES,
		.flags = UBLK_F_NEED_GET_DATA, /* buffers when we know for what */
		.block_size = 512,
		.size = argc > 1 ? strtoull(argv[1], NULL, 0) : 1 << 30};
	struct ublk_control *control;
	struct ublk_worker *worker;
	struct ublk_queue *queue;
	struct ublk_device device;
	struct ublk_command command;
	int gone = 0;

	signal(SIGINT, end);
	signal(SIGTERM, end);
	check(ublk_control_open(&control), "/dev/ublk-control (modprobe ublk_drv?)");
	check(ublk_add(control, &config, &device, 5000), "add");
	check(ublk_worker_open(DEPTH, &worker), "worker");
	check(ublk_queue_open(worker, &device, 0, NULL, NULL, &queue), "queue");
	check(ublk_start(control, &device, &command), "start");
	for (int told = 0; !ended; ublk_control_reap(control)) {
		if (command.ended && !told++) {
			check(command.result, "start");
			printf("/dev/ublkb%u\n", device.info.dev_id);
			fflush(stdout);
		}
		serve(worker, 100, &gone);
	}
	check(ublk_stop(control, device.info.dev_id, &command), "stop");
	while (!gone || !command.ended) {
		serve(worker, 100, &gone);
		ublk_control_reap(control);
	}
	ublk_queue_close(queue);
	ublk_close(&device);
	check(ublk_delete(control, device.info.dev_id, &command), "delete");
	check(ublk_wait(control, &command, 5000), "delete");
	ublk_worker_close(worker);
	ublk_control_close(control);
	return 0;
}

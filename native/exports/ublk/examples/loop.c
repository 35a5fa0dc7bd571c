#include "loop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 64

struct server {
	const struct loop *loop;
	const struct ublk_device *devices;
	unsigned number; /* of the queue of each device */
	pthread_t thread;
};

static int check(int result, const char *what)
{
	if (result >= 0)
		return result;
	fprintf(stderr, "%s: %s\n", what, strerror(-result));
	exit(1);
}

static struct ublk_queue *open_queue(const struct server *server, struct ublk_worker *worker,
				     unsigned device)
{
	const struct ublk_device *with = &server->devices[device];
	unsigned depth = with->info.queue_depth;
	void **buffers = calloc(depth, sizeof(*buffers));
	struct ublk_queue *queue;

	for (unsigned tag = 0; server->loop->with_buffers && tag < depth; tag++)
		buffers[tag] = aligned_alloc(4096, with->info.max_io_buf_bytes);
	check(ublk_queue_open(worker, with, server->number, buffers, (void *)(uintptr_t)device,
			      &queue),
	      "queue");
	free(buffers);
	return queue;
}

static void *serve(void *context)
{
	const struct server *server = context;
	unsigned count = server->loop->devices, left = count;
	struct ublk_queue **queues = calloc(count, sizeof(*queues));
	struct ublk_event events[BATCH];
	struct ublk_worker *worker;

	check(ublk_worker_open(count * server->devices->info.queue_depth, &worker), "worker");
	for (unsigned device = 0; device < count; device++)
		queues[device] = open_queue(server, worker, device);
	while (left) {
		int found = check(ublk_reap(worker, events, BATCH, -1), "reap");

		for (struct ublk_event *event = events; event < events + found; event++)
			if (event->kind == UBLK_GONE)
				left--;
			else if (event->kind == UBLK_FAILED)
				check(event->result, "ublk refused a command");
			else
				server->loop->event(
					event, event->queue
						       ? (unsigned)(uintptr_t)ublk_queue_context(
								 event->queue)
						       : 0);
	}
	for (unsigned device = 0; device < count; device++)
		ublk_queue_close(queues[device]);
	ublk_worker_close(worker);
	free(queues);
	return NULL;
}

static void acquire(struct ublk_control *control, const struct loop *loop,
		    struct ublk_device *device)
{
	int error = loop->recover < 0 ? ublk_add(control, &loop->config, device, 5000) : -EBUSY;

	/* The kernel is still putting the dead server's requests aside. */
	for (int tries = 0; loop->recover >= 0 && error == -EBUSY && tries < 1000; tries++) {
		error = ublk_recover(control, (uint32_t)loop->recover, device);
		if (error == -EBUSY)
			poll(NULL, 0, 10);
	}
	check(error, error == -ETIMEDOUT ? "the kernel does not answer ADD_DEV (6.18.4, 6.18.5 and "
					   "Ubuntu's 6.17 have this fault)"
					 : "add");
}

int loop_run(const struct loop *loop)
{
	struct ublk_device *devices = calloc(loop->devices, sizeof(*devices));
	struct ublk_command *commands = calloc(loop->devices, sizeof(*commands));
	struct ublk_control *control;
	struct server *servers;
	unsigned queues;
	sigset_t ends;
	int signal;

	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	check(ublk_control_open(&control), "/dev/ublk-control (modprobe ublk_drv?)");
	for (unsigned i = 0; i < loop->devices; i++)
		acquire(control, loop, &devices[i]);
	queues = devices->info.nr_hw_queues;
	servers = calloc(queues, sizeof(*servers));
	for (unsigned i = 0; i < queues; i++) {
		servers[i] = (struct server){.loop = loop, .devices = devices, .number = i};
		check(-pthread_create(&servers[i].thread, NULL, serve, &servers[i]), "thread");
	}
	for (unsigned i = 0; i < loop->devices; i++) {
		check(loop->recover < 0 ? ublk_start(control, &devices[i], &commands[i])
					: ublk_recovered(control, &devices[i], &commands[i]),
		      "start");
		check(ublk_wait(control, &commands[i], 60000), "start");
		printf("/dev/ublkb%u\n", devices[i].info.dev_id);
	}
	fflush(stdout);
	sigwait(&ends, &signal);
	for (unsigned i = 0; i < loop->devices; i++)
		check(ublk_stop(control, devices[i].info.dev_id, &commands[i]), "stop");
	for (unsigned i = 0; i < loop->devices; i++)
		check(ublk_wait(control, &commands[i], 60000), "stop");
	for (unsigned i = 0; i < queues; i++)
		pthread_join(servers[i].thread, NULL);
	for (unsigned i = 0; i < loop->devices; i++) {
		ublk_close(&devices[i]);
		check(ublk_delete(control, devices[i].info.dev_id, &commands[i]), "delete");
		check(ublk_wait(control, &commands[i], 60000), "delete");
	}
	ublk_control_close(control);
	free(servers);
	free(commands);
	free(devices);
	return 0;
}

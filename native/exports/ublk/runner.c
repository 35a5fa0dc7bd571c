/* sealsvc-ublk: a sealed file as /dev/ublkbN, by the target core. A recall is a pause: requests wait at the
 * core's gate. Killed, its requests wait in the kernel, and the next one (--recover N) answers them, those that
 * had been handed out again: reads, writes, flushes and discards may all be done twice. */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include "environment.h"
#include "target.h"
#include "ublk.h"

#define BATCH 64
#define MAX_BYTES (512u << 10)
#define ADD_MS 5000
#define START_MS 60000
#define STOP_MS 10000
#define RECOVER_MS 20000
#define MANY_BYTES (64u << 20) /* of one discard or write-zeroes request */

struct call {
	struct ublk_queue *queue;
	unsigned tag;
	struct ublksrv_io_desc io;
};

struct runner {
	struct export_target *target;
	struct ublk_control *control;
	struct ublk_device device;
	unsigned queues, depth, threads;
	/* Requests for the threads; none of those where the queues' own threads carry them out. */
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct call *calls;
	unsigned head, tail, room;
	int ended;
};

struct server {
	struct runner *runner;
	unsigned number;
	pthread_t thread;
};

static int complain(const char *what, int error)
{
	fprintf(stderr, "sealsvc-ublk: %s: %s\n", what, strerror(-error));
	return error;
}

static int carry_out(struct runner *runner, const struct call *call, char *buffer)
{
	struct export_target *target = runner->target;
	uint64_t offset = call->io.start_sector * 512;
	size_t bytes = call->io.nr_sectors * 512UL;
	unsigned flags = call->io.op_flags & UBLK_IO_F_FUA ? EXPORT_FUA : 0;
	long moved;
	int error;

	switch (ublk_op(&call->io)) {
	case UBLK_IO_OP_READ:
		error = export_read(target, buffer, bytes, offset, 0);
		return error ? error : (int)ublk_copy_to(call->queue, call->tag, buffer, bytes, 0);
	case UBLK_IO_OP_WRITE:
		moved = ublk_copy_from(call->queue, call->tag, buffer, bytes, 0);
		error = moved == (long)bytes ? export_write(target, buffer, bytes, offset, flags)
					     : -EIO;
		return error ? error : (int)bytes;
	case UBLK_IO_OP_FLUSH:
		return export_flush(target, 0);
	case UBLK_IO_OP_DISCARD:
		return export_discard(target, bytes, offset, 0);
	case UBLK_IO_OP_WRITE_ZEROES:
		return export_zero(target, bytes, offset, flags);
	default:
		return -EOPNOTSUPP;
	}
}

static void *carry_out_all(void *context)
{
	struct runner *runner = context;
	char *buffer = aligned_alloc(4096, MAX_BYTES);

	for (;;) {
		struct call call;

		pthread_mutex_lock(&runner->lock);
		while (runner->head == runner->tail && !runner->ended)
			pthread_cond_wait(&runner->more, &runner->lock);
		if (runner->head == runner->tail) {
			pthread_mutex_unlock(&runner->lock);
			break;
		}
		call = runner->calls[runner->tail++ % runner->room];
		pthread_mutex_unlock(&runner->lock);
		ublk_complete_elsewhere(call.queue, call.tag,
					buffer ? carry_out(runner, &call, buffer) : -ENOMEM);
	}
	free(buffer);
	return NULL;
}

static void hand_out(struct runner *runner, const struct call *call)
{
	pthread_mutex_lock(&runner->lock);
	runner->calls[runner->head++ % runner->room] = *call;
	pthread_cond_signal(&runner->more);
	pthread_mutex_unlock(&runner->lock);
}

/* Until the queue is gone. */
static void serve_queue(struct runner *runner, struct ublk_worker *worker, char *buffer)
{
	struct ublk_event events[BATCH];

	for (;;) {
		int found = ublk_reap(worker, events, BATCH, -1), gone = 0;

		if (found < 0) {
			complain("waiting for requests", found);
			return;
		}
		for (struct ublk_event *event = events; event < events + found; event++) {
			struct call call = {.queue = event->queue, .tag = event->tag};

			gone |= event->kind == UBLK_GONE;
			if (event->kind == UBLK_FAILED)
				complain("the kernel refused a command", event->result);
			if (event->kind != UBLK_REQUEST)
				continue;
			call.io = *event->io;
			if (runner->threads)
				hand_out(runner, &call);
			else
				ublk_complete(call.queue, call.tag,
					      carry_out(runner, &call, buffer));
		}
		if (gone)
			return;
	}
}

static void *serve(void *context)
{
	struct server *server = context;
	struct runner *runner = server->runner;
	char *buffer = aligned_alloc(4096, MAX_BYTES);
	struct ublk_worker *worker = NULL;
	struct ublk_queue *queue;
	int error = buffer ? ublk_worker_open(runner->depth, &worker) : -ENOMEM;

	if (!error)
		error = ublk_queue_open(worker, &runner->device, server->number, NULL, NULL,
					&queue);
	if (error) {
		complain("opening a queue", error); /* and the device does not start */
	} else {
		serve_queue(runner, worker, buffer);
		ublk_queue_close(queue);
	}
	if (worker)
		ublk_worker_close(worker);
	free(buffer);
	return NULL;
}

static unsigned block_of(const struct runner *runner)
{
	unsigned block = export_block(runner->target);

	return block < 512 ? 512 : block > 4096 ? 4096 : block;
}

static int add(struct runner *runner)
{
	unsigned block = block_of(runner);
	struct ublk_config config = {
		.id = -1,
		.queues = runner->queues,
		.depth = runner->depth,
		.max_bytes = MAX_BYTES,
		.flags = UBLK_F_USER_COPY | UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE,
		.size = export_size(runner->target) / block * block,
		.block_size = block,
		.physical_block_size = 4096,
		.read_only = export_is_read_only(runner->target),
		.write_cache = 1,
		.discard_granularity = export_discards(runner->target) ? 4096 : 0,
		.max_discard_bytes = MANY_BYTES,
		.max_write_zeroes_bytes = MANY_BYTES,
	};
	int error = ublk_add(runner->control, &config, &runner->device, ADD_MS);

	if (error == -ETIMEDOUT)
		fprintf(stderr, "sealsvc-ublk: the kernel does not answer ADD_DEV: Linux 6.18.4, "
				"6.18.5 and Ubuntu's 6.17 have this fault\n");
	if (!error && !(runner->device.info.flags & UBLK_F_USER_COPY))
		error = -EOPNOTSUPP; /* before Linux 6.6 */
	return error ? complain("adding a device", error) : 0;
}

static int take_over(struct runner *runner, int id)
{
	int error = -EBUSY;

	/* The kernel is still putting the dead process's requests aside. */
	for (int waited = 0; error == -EBUSY && waited < RECOVER_MS; waited += 5) {
		error = ublk_recover(runner->control, (uint32_t)id, &runner->device);
		if (error == -EBUSY)
			poll(NULL, 0, 5);
	}
	return error ? complain("taking the device over", error) : 0;
}

/* Whole or not at all: the next process finds the device by it. */
static int write_id(const char *path, unsigned id)
{
	char made[4096];
	FILE *file;
	int error = 0;

	if (!path) {
		printf("/dev/ublkb%u\n", id);
		fflush(stdout);
		return 0;
	}
	snprintf(made, sizeof(made), "%s.new", path);
	file = fopen(made, "we");
	if (!file)
		return complain(made, -errno);
	fprintf(file, "%u %d\n", id, getpid());
	if (fclose(file) || rename(made, path) < 0)
		error = complain(path, -errno);
	return error;
}

static int start_threads(struct runner *runner, struct server *servers, pthread_t *threads)
{
	int error = 0;

	for (unsigned i = 0; i < runner->threads; i++)
		error = error ?: -pthread_create(&threads[i], NULL, carry_out_all, runner);
	for (unsigned i = 0; i < runner->queues; i++) {
		servers[i] = (struct server){.runner = runner, .number = i};
		error = error ?: -pthread_create(&servers[i].thread, NULL, serve, &servers[i]);
	}
	return error ? complain("starting threads", error) : 0;
}

static int start_device(struct runner *runner, int recover)
{
	struct ublk_command command;
	int error = recover >= 0 ? ublk_recovered(runner->control, &runner->device, &command)
				 : ublk_start(runner->control, &runner->device, &command);

	if (!error)
		error = ublk_wait(runner->control, &command, START_MS);
	return error < 0 ? complain("starting the device", error) : 0;
}

static int stop_device(struct ublk_control *control, uint32_t id, struct runner *runner)
{
	struct ublk_command command;
	int error = ublk_stop(control, id, &command);

	if (!error)
		error = ublk_wait(control, &command, STOP_MS);
	if (error == -ETIMEDOUT && runner) {
		/* What is written back waits for the end of a pause: it fails now. */
		export_shutdown(runner->target);
		error = ublk_wait(control, &command, STOP_MS);
	}
	return error < 0 ? complain("stopping the device", error) : 0;
}

static int delete (struct ublk_control *control, uint32_t id)
{
	struct ublk_command command;
	int error = ublk_delete(control, id, &command);

	if (!error)
		error = ublk_wait(control, &command, STOP_MS);
	return error < 0 ? complain("deleting the device", error) : 0;
}

static int run(struct runner *runner, int recover, const char *id_file)
{
	struct server *servers;
	pthread_t *threads;
	sigset_t ends;
	int signal, status = 1;

	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	if ((recover >= 0 ? take_over(runner, recover) : add(runner)) < 0)
		return 1;
	runner->queues = runner->device.info.nr_hw_queues;
	runner->depth = runner->device.info.queue_depth;
	runner->room = runner->queues * runner->depth;
	runner->calls = calloc(runner->room, sizeof(*runner->calls));
	servers = calloc(runner->queues, sizeof(*servers));
	threads = calloc(runner->threads + 1, sizeof(*threads));
	if (!runner->calls || !servers || !threads || start_threads(runner, servers, threads) < 0)
		_exit(1);
	if (start_device(runner, recover) == 0 &&
	    write_id(id_file, runner->device.info.dev_id) == 0) {
		sigwait(&ends, &signal);
		status = 0;
	} else if (recover >= 0) {
		_exit(1); /* the device is left for another try */
	}
	if (stop_device(runner->control, runner->device.info.dev_id, runner) < 0)
		_exit(1);
	for (unsigned i = 0; i < runner->queues; i++)
		pthread_join(servers[i].thread, NULL);
	pthread_mutex_lock(&runner->lock);
	runner->ended = 1;
	pthread_cond_broadcast(&runner->more);
	pthread_mutex_unlock(&runner->lock);
	for (unsigned i = 0; i < runner->threads; i++)
		pthread_join(threads[i], NULL);
	ublk_close(&runner->device);
	if (delete (runner->control, runner->device.info.dev_id) < 0)
		return 1;
	free(servers);
	free(threads);
	free(runner->calls);
	return status;
}

static void say(void *context, int level, const char *text)
{
	(void)context;
	if (level <= LOG_WARNING)
		fprintf(stderr, "sealsvc-ublk: %s\n", text);
}

/* Seals the file, and serves it. */
static int serve_file(struct runner *runner, const char *path, int recover, const char *id_file)
{
	struct export_options options = {.size = sizeof(options), .log = say};
	char why[EXPORT_ERROR_ROOM] = "";
	int error = export_options_from_environment(&options, why, sizeof(why)), status;

	if (path)
		options.path = path;
	if (!options.name)
		options.name = "ublk";
	if (!error)
		error = export_open(&runner->target, &options, why, sizeof(why));
	if (!error)
		error = export_start(runner->target);
	if (error) {
		fprintf(stderr, "sealsvc-ublk: %s: %s\n", options.path ?: "", why);
		return 1;
	}
	/* From persistent memory a request is a copy: handing it to another thread costs more. */
	if (export_is_dax(runner->target))
		runner->threads = 0;
	status = run(runner, recover, id_file);
	export_close(runner->target);
	return status;
}

static int remove_device(struct ublk_control *control, int id)
{
	if (stop_device(control, (uint32_t)id, NULL) < 0)
		return 1;
	return delete (control, (uint32_t)id) < 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: sealsvc-ublk [--queues N] [--depth N] [--threads N] [--recover N] "
			"[--id-file PATH] [FILE]\n       sealsvc-ublk --delete N\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"queues", required_argument, NULL, 'q'},
						{"depth", required_argument, NULL, 'd'},
						{"threads", required_argument, NULL, 't'},
						{"recover", required_argument, NULL, 'r'},
						{"id-file", required_argument, NULL, 'i'},
						{"delete", required_argument, NULL, 'x'},
						{0}};
	struct runner runner = {.queues = 1,
				.depth = 64,
				.threads = 8,
				.lock = PTHREAD_MUTEX_INITIALIZER,
				.more = PTHREAD_COND_INITIALIZER};
	const char *id_file = NULL;
	int recover = -1, doomed = -1, error;
	sigset_t ends;

	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
		if (option == 'q')
			runner.queues = (unsigned)atoi(optarg);
		else if (option == 'd')
			runner.depth = (unsigned)atoi(optarg);
		else if (option == 't')
			runner.threads = (unsigned)atoi(optarg);
		else if (option == 'r')
			recover = atoi(optarg);
		else if (option == 'i')
			id_file = optarg;
		else if (option == 'x')
			doomed = atoi(optarg);
		else
			return usage();
	if (argc > optind + 1 || !runner.queues || !runner.depth)
		return usage();
	/* Before any thread is made. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	error = ublk_control_open(&runner.control);
	if (error) {
		complain("/dev/ublk-control (modprobe ublk_drv)", error);
		return 1;
	}
	if (doomed >= 0)
		return remove_device(runner.control, doomed);
	return serve_file(&runner, argc > optind ? argv[optind] : NULL, recover, id_file);
}

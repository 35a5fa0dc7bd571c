/* What a client of libseal gets. Each subcommand prints one sample in microseconds (of `valid`: in
 * nanoseconds) per line.
 *
 * usage: ring MODE SOCKET FILE ROUNDS [LIVE]
 *
 * LIVE seals are granted before the first sample; of `clients` it is the number of rings.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "seal.h"
#include "seal_ring.h"

#define BLOCK 4096
#define BATCH 32

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void die(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

/* With the service's own words: which limit was reached, and of whom. */
static void refused(const char *what, struct seal_client *of, int error)
{
	fprintf(stderr, "%s: %s\n", seal_failure(of), what);
	die(what, error);
}

static struct seal_client *client;
static int file;
static unsigned completed;
static struct seal taken[BATCH];

static void done(struct seal_client *of, const struct seal_completion *completion, void *context)
{
	(void)context;
	if (completion->status)
		die("a command", completion->status);
	seal_take(of, completion, &taken[completed % BATCH]);
	completed++;
}

static void open_client(const char *socket, const char *path, uint32_t slots)
{
	struct seal_options options = {
		.size = sizeof(options), .socket = socket, .slots = slots, .done = done};
	const char *spin = getenv("RING_SPIN");
	int error, fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die(path, errno);
	options.spin = spin ? (uint32_t)atoi(spin) : 0;
	error = seal_open(&client, &options);
	if (error)
		refused("seal_open", NULL, error);
	file = seal_register(client, fd, NULL);
	if (file < 0)
		refused("seal_register", client, file);
	close(fd);
}

static struct seal grant(uint64_t offset)
{
	struct seal seal;
	int error = seal_grant(client, file, offset, BLOCK, SEAL_RW, &seal);

	if (error)
		die("seal_grant", error);
	return seal;
}

/* Grant and return, each waited for. */
static void cycle(int rounds)
{
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();
		struct seal seal = grant(0);
		int error = seal_return(client, &seal);

		if (error)
			die("seal_return", error);
		printf("%.3f\n", now_us() - begun);
	}
}

static void submit(const struct seal_command *command)
{
	if (seal_submit(client, command) < 0)
		die("seal_submit", EAGAIN);
}

static void wait_for(unsigned count)
{
	while (completed < count) {
		struct pollfd poller = {seal_fd(client), POLLIN, 0};

		poll(&poller, 1, 1000);
		if (seal_dispatch(client) < 0)
			die("seal_dispatch", EPIPE);
	}
	completed = 0;
}

/* The return of the seal before goes with the next grant: one round trip for a pair. */
static void pipelined(int rounds)
{
	struct seal before = grant(0);

	for (int i = 0; i < rounds; i++) {
		const struct seal_command back = {
			.op = SEAL_CMD_RETURN, .slot = before.number, .word = before.word};
		double begun = now_us();

		submit(&back);
		before = grant(0);
		printf("%.3f\n", now_us() - begun);
		seal_dispatch(client);
	}
}

/* BATCH grants by one doorbell, then their returns by one: microseconds for a pair. */
static void batch(int rounds)
{
	struct seal_command command = {.op = SEAL_CMD_GRANT, .length = BLOCK, .iomode = SEAL_RW};

	command.file = (uint32_t)file;
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		for (int n = 0; n < BATCH; n++)
			submit(&command);
		seal_flush(client);
		wait_for(BATCH);
		for (int n = 0; n < BATCH; n++) {
			const struct seal_command back = {.op = SEAL_CMD_RETURN,
							  .slot = taken[n].number,
							  .word = taken[n].word};

			submit(&back);
		}
		seal_flush(client);
		wait_for(BATCH);
		printf("%.4f\n", (now_us() - begun) / BATCH);
	}
}

/* Nanoseconds of a thousand checks, each; and, as `load`, of a plain load. */
static void valid(int rounds, int plain)
{
	struct seal seal = grant(0);
	volatile uint64_t word = seal.word;
	unsigned good = 0;

	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		for (int n = 0; n < 10000; n++) {
			if (plain)
				good += word == seal.word;
			else
				good += (unsigned)seal_valid(&seal);
			__asm__ volatile("" ::: "memory");
		}
		printf("%.4f\n", (now_us() - begun) / 10);
	}
	if (good != (unsigned)rounds * 10000)
		die("seal_valid", EIO);
}

static void getlease(const char *path, int rounds)
{
	int fd = open(path, O_RDONLY);
	unsigned good = 0;

	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		for (int n = 0; n < 1000; n++)
			good += fcntl(fd, F_GETLEASE) == F_UNLCK;
		printf("%.4f\n", now_us() - begun);
	}
	if (!good)
		die("F_GETLEASE", EIO);
	close(fd);
}

static unsigned recalled;
static double recalled_at;

static void news(struct seal_client *of, const struct seal_news *what, void *context)
{
	(void)of;
	(void)context;
	if (what->kind == SEAL_EVENT_RECALL) {
		recalled_at = now_us();
		recalled++;
	}
}

/* A recall is rare, and comes when other things are in the caches: they are as cold for both sides. */
static void chill(void)
{
	static volatile char other[8 << 20];

	for (size_t i = 0; i < sizeof(other); i += 64)
		other[i]++;
}

/* From just before another process's truncate(2) to the holder's callback; `whole`: to its end, which
 * waits until the holder has given the seal back. The intruder waits a little first, as that of the
 * floor does: until the holder sleeps. */
static void recall(const char *socket, const char *path, int rounds, int whole)
{
	struct seal_options options = {.size = sizeof(options), .socket = socket, .news = news};
	static const char block[2 * BLOCK];
	int error, go[2], over[2], fd = open(path, O_RDWR | O_CLOEXEC);
	double *begun = mmap(NULL, 2 * sizeof(*begun), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child;
	char byte = 0;

	if (pipe(go) < 0 || pipe(over) < 0 || begun == MAP_FAILED)
		die("pipe", errno);
	child = fork();
	if (child == 0) {
		close(go[1]);
		close(fd);
		while (read(go[0], &byte, 1) == 1) {
			usleep(1000);
			*begun = now_us();
			if (truncate(path, BLOCK) < 0)
				_exit(1);
			begun[1] = now_us();
			if (write(over[1], &byte, 1) < 0)
				_exit(1);
		}
		_exit(0);
	}
	if (pwrite(fd, block, sizeof(block), 0) < 0 || fsync(fd) < 0)
		die(path, errno);
	error = seal_open(&client, &options);
	if (error)
		die("seal_open", error);
	file = seal_register(client, fd, NULL);
	for (int i = 0; i < rounds; i++) {
		struct seal seal;

		if (pwrite(fd, block, sizeof(block), 0) < 0 || fsync(fd) < 0)
			die(path, errno);
		seal = grant(BLOCK);
		recalled = 0;
		/* What the service did about the one before is over. */
		usleep(5000);
		chill();
		if (write(go[1], &byte, 1) < 0)
			die("pipe", errno);
		while (!recalled) {
			struct pollfd poller = {seal_fd(client), POLLIN, 0};

			poll(&poller, 1, 1000);
			seal_dispatch(client);
		}
		error = seal_refresh(client, &seal);
		if (!error)
			error = seal_return(client, &seal);
		if (error)
			die("seal_return", error);
		if (read(over[0], &byte, 1) < 0)
			die("pipe", errno);
		printf("%.3f\n", (whole ? begun[1] : recalled_at) - *begun);
	}
	close(go[1]);
	waitpid(child, NULL, 0);
}

/* So many seals, by the shortest way. */
static void fill(unsigned live)
{
	struct seal_command command = {.op = SEAL_CMD_GRANT, .length = BLOCK, .iomode = SEAL_RW};

	command.file = (uint32_t)file;
	while (live) {
		unsigned count = live < BATCH ? live : BATCH;

		for (unsigned n = 0; n < count; n++)
			submit(&command);
		seal_flush(client);
		wait_for(count);
		live -= count;
	}
}

/* Many rings at once, each with one command under way: grant, renew, inquire, return, over and over. A
 * sample is the time from a command's doorbell to its completion. */
struct one {
	struct seal_client *client;
	struct seal seal;
	int file, step, waiting;
	double begun;
};

static void one_done(struct seal_client *of, const struct seal_completion *completion,
		     void *context)
{
	struct one *one = context;

	if (completion->status)
		die("a command", completion->status);
	if (one->step == 0)
		seal_take(of, completion, &one->seal);
	one->step = (one->step + 1) % 4;
	one->waiting = 0;
	printf("%.3f\n", now_us() - one->begun);
}

static void next(struct one *one)
{
	static const uint16_t ops[] = {SEAL_CMD_GRANT, SEAL_CMD_RENEW, SEAL_CMD_INQUIRE,
				       SEAL_CMD_RETURN};
	const struct seal_command command = {.op = ops[one->step],
					     .file = (uint32_t)one->file,
					     .length = BLOCK,
					     .iomode = SEAL_RW,
					     .slot = one->seal.number,
					     .word = one->seal.word};

	one->begun = now_us();
	one->waiting = 1;
	if (seal_submit(one->client, &command) < 0 || seal_flush(one->client) < 0)
		die("seal_submit", EAGAIN);
}

static void clients(const char *socket, const char *path, int rounds, unsigned count)
{
	struct one *all = calloc(count, sizeof(*all));
	int polls = epoll_create1(EPOLL_CLOEXEC), fd = open(path, O_RDWR | O_CLOEXEC);

	for (unsigned i = 0; i < count; i++) {
		struct seal_options options = {.size = sizeof(options),
					       .socket = socket,
					       .slots = 4,
					       .commands = 4096,
					       .events = 4,
					       .data = 4096,
					       .done = one_done,
					       .context = &all[i]};
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
		int error = seal_open(&all[i].client, &options);

		if (error)
			refused("seal_open", NULL, error);
		all[i].file = seal_register(all[i].client, fd, NULL);
		if (all[i].file < 0)
			refused("seal_register", all[i].client, all[i].file);
		epoll_ctl(polls, EPOLL_CTL_ADD, seal_fd(all[i].client), &event);
	}
	for (int round = 0; round < rounds; round++) {
		unsigned left = count;

		for (unsigned i = 0; i < count; i++)
			next(&all[i]);
		while (left) {
			struct epoll_event events[64];
			int n = epoll_wait(polls, events, 64, 5000);

			if (n <= 0)
				die("a client that is not served", ETIMEDOUT);
			for (int e = 0; e < n; e++) {
				struct one *one = &all[events[e].data.u32];

				if (!one->waiting) {
					seal_dispatch(one->client);
					continue;
				}
				seal_dispatch(one->client);
				left -= !one->waiting;
			}
		}
	}
	for (unsigned i = 0; i < count; i++)
		seal_close(all[i].client);
	free(all);
	close(polls);
	close(fd);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 4 ? argv[1] : "";
	int rounds = argc > 4 ? atoi(argv[4]) : 0;
	unsigned live = argc > 5 ? (unsigned)atoi(argv[5]) : 0;

	if (argc < 5) {
		fprintf(stderr, "usage: ring MODE SOCKET FILE ROUNDS [LIVE]\n");
		return 2;
	}
	if (!strcmp(mode, "getlease")) {
		getlease(argv[3], rounds);
		return 0;
	}
	if (!strcmp(mode, "recall") || !strcmp(mode, "conflict")) {
		recall(argv[2], argv[3], rounds, !strcmp(mode, "conflict"));
		seal_close(client);
		return 0;
	}
	if (!strcmp(mode, "clients")) {
		clients(argv[2], argv[3], rounds, live);
		return 0;
	}
	open_client(argv[2], argv[3], live + 2 * BATCH);
	fill(live);
	if (!strcmp(mode, "cycle"))
		cycle(rounds);
	else if (!strcmp(mode, "pipelined"))
		pipelined(rounds);
	else if (!strcmp(mode, "batch"))
		batch(rounds);
	else if (!strcmp(mode, "valid"))
		valid(rounds, 0);
	else if (!strcmp(mode, "load"))
		valid(rounds, 1);
	else
		return 2;
	fflush(stdout);
	if (live) { /* somebody measures what they cost */
		printf("held\n");
		fflush(stdout);
		getchar();
	}
	seal_close(client);
	return 0;
}

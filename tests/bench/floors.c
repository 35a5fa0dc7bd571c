/* The bare kernel mechanisms that the service is measured against. Each subcommand prints one sample
 * in microseconds per line. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* A SOCK_SEQPACKET round trip between two processes. */
static int socket_floor(int rounds)
{
	char message[64] = {0};
	int pair[2];
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
		die("socketpair");
	child = fork();
	if (child == 0) {
		close(pair[0]);
		while (read(pair[1], message, sizeof(message)) > 0)
			if (write(pair[1], message, sizeof(message)) < 0)
				break;
		_exit(0);
	}
	close(pair[1]);
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		if (write(pair[0], message, sizeof(message)) < 0 ||
		    read(pair[0], message, sizeof(message)) < 0)
			die("round trip");
		printf("%.3f\n", now_us() - begun);
	}
	close(pair[0]);
	waitpid(child, NULL, 0);
	return 0;
}

/* An intruder that was there before, as it is for the figure: at each byte it waits for the other side
 * to be asleep, notes the time where both see it, does it, and notes the time again. */
static double *begun;

static pid_t start_intruder(const char *path, int go[2], int (*intrude)(const char *path))
{
	char byte;
	pid_t child;

	begun = mmap(NULL, 2 * sizeof(*begun), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	if (begun == MAP_FAILED || pipe(go) < 0)
		die("pipe");
	child = fork();
	if (child == 0) {
		close(go[1]);
		while (read(go[0], &byte, 1) == 1) {
			usleep(1000);
			*begun = now_us();
			if (intrude(path) < 0)
				_exit(1);
			begun[1] = now_us();
		}
		_exit(0);
	}
	close(go[0]);
	return child;
}

static int open_and_close(const char *path)
{
	int fd = open(path, O_RDONLY);

	return fd < 0 ? -1 : close(fd);
}

static int cut(const char *path)
{
	return truncate(path, 4096);
}

/* A recall is rare, and comes when other things are in the caches: they are as cold for both sides. */
static void chill(void)
{
	static volatile char other[8 << 20];

	for (size_t i = 0; i < sizeof(other); i += 64)
		other[i]++;
}

/* From just before another process's open(2) to the lease holder's read of its signalfd. */
static int lease_floor(const char *path, int rounds, int cold)
{
	struct signalfd_siginfo info;
	int go[2], fd, signals;
	pid_t child = start_intruder(path, go, open_and_close);
	sigset_t set;

	fd = open(path, O_RDWR);
	if (fd < 0)
		die(path);
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, 0);
	for (int i = 0; i < rounds; i++) {
		double seen;

		/* Until the intruder of the round before has closed its descriptor. */
		while (fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
			usleep(100);
		fcntl(fd, F_SETSIG, SIGRTMIN);
		fcntl(fd, F_SETOWN, getpid());
		if (cold)
			chill();
		if (write(go[1], "", 1) < 0 || read(signals, &info, sizeof(info)) < 0)
			die("signalfd");
		seen = now_us();
		printf("%.3f\n", seen - *begun);
		fcntl(fd, F_SETLEASE, F_UNLCK);
	}
	close(go[1]);
	waitpid(child, NULL, 0);
	return 0;
}

/* The same by the mechanism that we have: a bare responder in C, in a process of its own, that tells the
 * holder by an eventfd, and lets the operation go on when the holder says so. `whole`: until it has. */
static int responder_floor(const char *path, int rounds, int cold, int whole)
{
	int go[2], bell = eventfd(0, EFD_CLOEXEC), over = eventfd(0, EFD_CLOEXEC);
	pid_t child = start_intruder(path, go, cut), responder;
	eventfd_t count;

	responder = fork();
	if (responder == 0) {
		char buffer[4096] __attribute__((aligned(8)));
		struct fanotify_event_metadata *meta = (void *)buffer;
		int group = fanotify_init(FAN_CLASS_PRE_CONTENT, O_RDONLY);

		close(go[1]); /* the intruder ends when nobody has it */
		if (group < 0 ||
		    fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, path) < 0)
			die("fanotify");
		eventfd_write(bell, 1);
		while (read(group, buffer, sizeof(buffer)) > 0) {
			struct fanotify_response answer = {meta->fd, FAN_ALLOW};

			eventfd_write(bell, 1);
			eventfd_read(over, &count);
			if (write(group, &answer, sizeof(answer)) < 0)
				die("answer");
			close(meta->fd);
		}
		_exit(0);
	}
	eventfd_read(bell, &count); /* it watches */
	for (int i = 0; i < rounds; i++) {
		double seen;

		if (cold)
			chill();
		if (write(go[1], "", 1) < 0 || eventfd_read(bell, &count) < 0)
			die("eventfd");
		seen = now_us();
		eventfd_write(over, 1);
		usleep(1000);
		printf("%.3f\n", (whole ? begun[1] : seen) - *begun);
	}
	close(go[1]);
	waitpid(child, NULL, 0);
	kill(responder, SIGKILL);
	waitpid(responder, NULL, 0);
	return 0;
}

/* An eventfd each way, between two processes. */
static int eventfd_floor(int rounds)
{
	int there = eventfd(0, EFD_CLOEXEC), back = eventfd(0, EFD_CLOEXEC);
	eventfd_t count;
	pid_t child = fork();

	if (child == 0) {
		while (eventfd_read(there, &count) == 0)
			eventfd_write(back, 1);
		_exit(0);
	}
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		eventfd_write(there, 1);
		if (eventfd_read(back, &count) < 0)
			die("eventfd");
		printf("%.3f\n", now_us() - begun);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return 0;
}

/* The bare calls for a file that nothing is known of: mark, FIEMAP, take the mark away. */
static int cold_floor(const char *path, int rounds)
{
	struct {
		struct fiemap head;
		struct fiemap_extent extents[8];
	} map;
	int fd = open(path, O_RDWR), mine = fanotify_init(FAN_CLASS_PRE_CONTENT, O_RDONLY);

	if (fd < 0 || mine < 0)
		die(path);
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		if (fanotify_mark(mine, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, path) < 0)
			die("fanotify_mark");
		memset(&map, 0, sizeof(map));
		map.head.fm_length = ~0UL;
		map.head.fm_extent_count = 8;
		if (ioctl(fd, FS_IOC_FIEMAP, &map) < 0 ||
		    fanotify_mark(mine, FAN_MARK_REMOVE, FAN_PRE_ACCESS, AT_FDCWD, path) < 0)
			die("FIEMAP");
		printf("%.3f\n", now_us() - begun);
	}
	return 0;
}

/* What a user might pick instead: a lease taken and given back. */
static int lease_cycle(const char *path, int rounds)
{
	int fd = open(path, O_RDONLY);

	signal(SIGIO, SIG_IGN);
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		if (fcntl(fd, F_SETLEASE, F_RDLCK) < 0 || fcntl(fd, F_SETLEASE, F_UNLCK) < 0)
			die("F_SETLEASE");
		printf("%.3f\n", now_us() - begun);
	}
	return 0;
}

static int group;

static void *respond(void *argument)
{
	char buffer[4096] __attribute__((aligned(8)));
	ssize_t n;

	while ((n = read(group, buffer, sizeof(buffer))) > 0) {
		struct fanotify_event_metadata *meta = (void *)buffer;

		for (; FAN_EVENT_OK(meta, n); meta = FAN_EVENT_NEXT(meta, n)) {
			struct fanotify_response answer = {meta->fd, FAN_ALLOW};

			if (write(group, &answer, sizeof(answer)) < 0)
				perror("answer");
			close(meta->fd);
		}
	}
	return argument;
}

/* In-place pwrite(2) of 4 KiB; with `watch` under a responder that allows everything, which lives in
 * another process as ours does. */
static int pwrite_floor(const char *path, int rounds, int watch)
{
	char block[4096];
	pid_t child = 0;
	int fd;

	memset(block, 'x', sizeof(block));
	if (watch) {
		group = fanotify_init(FAN_CLASS_PRE_CONTENT, O_RDONLY);
		if (group < 0 ||
		    fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, path) < 0)
			die("fanotify");
		child = fork();
		if (child == 0) {
			respond(NULL);
			_exit(0);
		}
		close(group);
	}
	fd = open(path, O_RDWR);
	if (fd < 0)
		die(path);
	for (int i = 0; i < rounds; i++) {
		double begun = now_us();

		if (pwrite(fd, block, sizeof(block), 4096) < 0)
			die("pwrite");
		printf("%.3f\n", now_us() - begun);
	}
	if (child) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	return 0;
}

/* Every extent of a file, in batches of 512; microseconds per extent. */
static int fiemap_floor(const char *path, int rounds)
{
	size_t size = sizeof(struct fiemap) + 512 * sizeof(struct fiemap_extent);
	struct fiemap *map = malloc(size);
	int fd = open(path, O_RDONLY);

	if (fd < 0 || !map)
		die(path);
	for (int i = 0; i < rounds; i++) {
		unsigned long total = 0, at = 0;
		double begun = now_us();
		int last = 0;

		while (!last) {
			memset(map, 0, sizeof(*map));
			map->fm_start = at;
			map->fm_length = ~0UL - at;
			map->fm_extent_count = 512;
			if (ioctl(fd, FS_IOC_FIEMAP, map) < 0)
				die("FIEMAP");
			if (map->fm_mapped_extents == 0)
				break;
			total += map->fm_mapped_extents;
			struct fiemap_extent *end = &map->fm_extents[map->fm_mapped_extents - 1];

			at = end->fe_logical + end->fe_length;
			last = (end->fe_flags & FIEMAP_EXTENT_LAST) != 0;
		}
		printf("%.5f\n", (now_us() - begun) / (double)(total ? total : 1));
	}
	return 0;
}

/* Each of the files in ranges of `length` bytes, `count` of them; microseconds per range. */
static int fiemap_ranges_floor(int rounds, unsigned long length, int count, char **paths, int files)
{
	size_t size = sizeof(struct fiemap) + 512 * sizeof(struct fiemap_extent);
	struct fiemap *map = malloc(size);
	int *fds = calloc((size_t)files, sizeof(*fds));

	if (!map || !fds)
		die("malloc");
	for (int i = 0; i < files; i++) {
		fds[i] = open(paths[i], O_RDONLY);
		if (fds[i] < 0)
			die(paths[i]);
	}
	for (int round = 0; round < rounds; round++) {
		double begun = now_us();

		for (int i = 0; i < files * count; i++) {
			memset(map, 0, sizeof(*map));
			map->fm_start = (unsigned long)(i % count) * length;
			map->fm_length = length;
			map->fm_extent_count = 512;
			if (ioctl(fds[i / count], FS_IOC_FIEMAP, map) < 0)
				die("FIEMAP");
		}
		printf("%.5f\n", (now_us() - begun) / (files * count));
	}
	return 0;
}

/* At each line of the standard input: the time, and then a message of `size` bytes to each of the
 * descriptors. */
static int send_floor(size_t size, char **numbers, int count)
{
	int *fds = calloc((size_t)count, sizeof(*fds));
	char *message = calloc(1, size);
	char line[16];

	if (!fds || !message)
		die("malloc");
	for (int i = 0; i < count; i++)
		fds[i] = atoi(numbers[i]);
	while (fgets(line, sizeof(line), stdin)) {
		printf("%.9f\n", now_us() / 1e6);
		fflush(stdout);
		for (int i = 0; i < count; i++)
			if (write(fds[i], message, size) < 0)
				die("send");
	}
	return 0;
}

int main(int argc, char **argv)
{
	int rounds = argc > 2 ? atoi(argv[2]) : 0;

	if (argc > 2 && !strcmp(argv[1], "socket"))
		return socket_floor(rounds);
	if (argc > 2 && !strcmp(argv[1], "eventfd"))
		return eventfd_floor(rounds);
	if (argc > 3 && !strcmp(argv[1], "cold"))
		return cold_floor(argv[3], rounds);
	if (argc > 3 && !strcmp(argv[1], "lease-cycle"))
		return lease_cycle(argv[3], rounds);
	if (argc > 3 && !strcmp(argv[1], "lease"))
		return lease_floor(argv[3], rounds, argc > 4);
	if (argc > 3 && !strcmp(argv[1], "responder"))
		return responder_floor(argv[3], rounds, argc > 4, 0);
	if (argc > 3 && !strcmp(argv[1], "responder-whole"))
		return responder_floor(argv[3], rounds, argc > 4, 1);
	if (argc > 3 && !strcmp(argv[1], "pwrite"))
		return pwrite_floor(argv[3], rounds, 0);
	if (argc > 3 && !strcmp(argv[1], "pwrite-watched"))
		return pwrite_floor(argv[3], rounds, 1);
	if (argc > 3 && !strcmp(argv[1], "fiemap"))
		return fiemap_floor(argv[3], rounds);
	if (argc > 5 && !strcmp(argv[1], "fiemap-ranges"))
		return fiemap_ranges_floor(rounds, strtoul(argv[3], NULL, 10), atoi(argv[4]),
					   argv + 5, argc - 5);
	if (argc > 3 && !strcmp(argv[1], "send"))
		return send_floor((size_t)rounds, argv + 3, argc - 3);
	fprintf(stderr, "usage: floors "
			"socket|eventfd|lease|responder|responder-whole|lease-cycle|cold|pwrite"
			"|pwrite-watched|fiemap ROUNDS [FILE]\n"
			"       floors lease|responder|responder-whole ROUNDS FILE cold\n"
			"       floors fiemap-ranges ROUNDS LENGTH COUNT FILE...\n"
			"       floors send SIZE DESCRIPTOR...\n");
	return 2;
}

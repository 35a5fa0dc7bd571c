/* A file server of many clients, in the manner of SMB over RDMA: each client has a region of one file, which
 * the server maps and seals, so that a network card may read and write its blocks. When somebody wants to
 * change the file's extent map in one region, that client alone is told to pause, the region is given back,
 * and sealed again once the change is through.
 *
 *	./server FILE SOCKET
 *
 * One thread, one event loop, one registered file. */
#define _GNU_SOURCE /* accept4(2) */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <seal.h>
#include <seal_ring.h>

#include "regions.h"

#define RETRY_MS 50 /* between two attempts to seal a region again */

struct region {
	int connection; /* of its client; -1: it is free */
	int sealed;
	uint32_t token; /* another one each time it is sealed */
	struct seal seal;
	char *memory;
};

static struct region regions[REGIONS];
static struct seal_client *client;
static int fd, file = -1;
static uint32_t last_token;

static uint64_t place(const struct region *region)
{
	return (uint64_t)(region - regions) * REGION_SIZE;
}

static void tell(struct region *region, struct message *message)
{
	message->region = region - regions;
	message->token = region->token;
	/* A client that does not read is disconnected, for the others must not wait for it. */
	if (send(region->connection, message, sizeof(*message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		shutdown(region->connection, SHUT_RDWR);
}

/* A hole has no block that could be sealed, so it gets one. The zero-range is a change of the map that the
 * service sees, and reads the map anew for; a write into a hole is not. */
static int fill(const struct region *region)
{
	static const char zeros[REGION_SIZE];
	off_t at = place(region), end = at + REGION_SIZE, data;

	for (; at < end; at = data) {
		off_t hole = lseek(fd, at, SEEK_HOLE);

		if (hole >= 0) /* else the file ends before */
			at = hole;
		if (at >= end)
			break;
		data = lseek(fd, at, SEEK_DATA);
		if (data < 0 || data > end)
			data = end;
		if (fallocate(fd, FALLOC_FL_ZERO_RANGE, at, data - at) ||
		    pwrite(fd, zeros, data - at, at) != data - at)
			return -errno;
	}
	return fdatasync(fd) ? -errno : 0;
}

static int register_file(void)
{
	struct seal_file_options options = {
		.size = sizeof(options),
		.grace = UINT64_C(10000000000), /* ns */
		.tag = "smb-example",
		.prepare = SEAL_PREPARE_ALLOCATE | SEAL_PREPARE_CONVERT,
	};

	file = seal_register(client, fd, &options);
	return file < 0 ? file : 0;
}

/* 0: sealed and mapped. -EAGAIN: not yet. */
static int seal_region(struct region *region)
{
	struct message message = {.kind = MESSAGE_READY};
	int error;

	if (file < 0 && register_file())
		return -EAGAIN;
	error = seal_grant(client, file, place(region), REGION_SIZE, SEAL_RW, &region->seal);
	if (error == -EOPNOTSUPP || error == -EINVAL)
		error = fill(region) ? -EIO : -EAGAIN;
	if (error)
		return error;
	region->memory =
		mmap(NULL, REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, place(region));
	if (region->memory == MAP_FAILED) {
		seal_return(client, &region->seal);
		return -ENOMEM;
	}
	/* Here a real server registers its memory with the card. */
	region->sealed = 1;
	region->token = ++last_token;
	tell(region, &message);
	return 0;
}

/* Nothing of the region may be in use when the seal is returned. A real server invalidates its memory
 * registration first: the card's requests end before that call does. */
static void give_back(struct region *region, int over)
{
	if (!region->sealed)
		return;
	region->sealed = 0;
	munmap(region->memory, REGION_SIZE);
	/* -ESTALE: it was recalled between the two. */
	while (!over && seal_refresh(client, &region->seal) == 0 &&
	       seal_return(client, &region->seal) == -ESTALE)
		;
}

static void break_region(struct region *region, int over)
{
	struct message message = {.kind = MESSAGE_BREAK};

	if (!region->sealed)
		return;
	tell(region, &message);
	give_back(region, over);
}

/* The whole file is wanted back, or the registration is over: everybody pauses. */
static void break_file(uint32_t state)
{
	int i, over = !(SEAL_LIVE_STATES >> state & 1u);

	if (state == SEAL_GRANTED || state == SEAL_ACTIVE || file < 0)
		return;
	for (i = 0; i < REGIONS; i++)
		break_region(&regions[i], over);
	if (!over)
		seal_unregister(client, file);
	file = -1;
}

/* Called by seal_dispatch(), in our own thread. */
static void news(struct seal_client *from, const struct seal_news *what, void *context)
{
	int i;

	(void)from;
	(void)context;
	if (what->kind == SEAL_EVENT_FILE) {
		break_file(what->state);
		return;
	}
	if (what->kind != SEAL_EVENT_RECALL && what->kind != SEAL_EVENT_LOST &&
	    what->kind != SEAL_EVENT_OVER)
		return;
	for (i = 0; i < REGIONS; i++)
		if (regions[i].sealed && regions[i].seal.number == what->number)
			break_region(&regions[i], what->kind == SEAL_EVENT_OVER);
}

/* 1 when a client waits for its region. */
static int seal_again(void)
{
	int i, waiting = 0;

	for (i = 0; i < REGIONS; i++)
		if (regions[i].connection >= 0 && !regions[i].sealed && seal_region(&regions[i]))
			waiting = 1;
	return waiting;
}

static void admit(int listener)
{
	int i, connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	for (i = 0; i < REGIONS && connection >= 0; i++)
		if (regions[i].connection < 0) {
			regions[i].connection = connection;
			return;
		}
	close(connection);
}

static void dismiss(struct region *region)
{
	give_back(region, 0);
	close(region->connection);
	region->connection = -1;
}

/* In place of what the card does: with the token, and only while the seal is valid. */
static void transfer(struct region *region, struct message *request)
{
	int good = region->sealed && request->token == region->token && seal_valid(&region->seal);

	if (request->length > DATA_MAX || request->offset > REGION_SIZE - DATA_MAX)
		request->status = -EINVAL;
	else if (!good)
		request->status = -ESTALE;
	else if (request->kind == MESSAGE_WRITE)
		memcpy(region->memory + request->offset, request->data, request->length);
	else
		memcpy(request->data, region->memory + request->offset, request->length);
	request->kind = MESSAGE_DONE;
	tell(region, request);
}

static void serve(struct region *region)
{
	struct message request;
	ssize_t size = recv(region->connection, &request, sizeof(request), MSG_DONTWAIT);

	if (size < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (size != sizeof(request) ||
	    (request.kind != MESSAGE_WRITE && request.kind != MESSAGE_READ)) {
		dismiss(region);
		return;
	}
	request.status = 0;
	transfer(region, &request);
}

static int listen_at(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, REGIONS))
		return -1;
	return listener;
}

static int run(int listener)
{
	struct pollfd polled[REGIONS + 2];
	int i, error, waiting;

	for (;;) {
		waiting = seal_again();
		polled[REGIONS] = (struct pollfd){.fd = listener, .events = POLLIN};
		polled[REGIONS + 1] = (struct pollfd){.fd = seal_fd(client), .events = POLLIN};
		for (i = 0; i < REGIONS; i++)
			polled[i] = (struct pollfd){.fd = regions[i].connection, .events = POLLIN};
		if (poll(polled, REGIONS + 2, waiting ? RETRY_MS : -1) < 0 && errno != EINTR)
			return -errno;
		/* Recalls before requests: a token that is not good is not used once more. */
		error = seal_dispatch(client);
		if (error < 0)
			return error;
		for (i = 0; i < REGIONS; i++)
			if (regions[i].connection >= 0 && polled[i].revents)
				serve(&regions[i]);
		if (polled[REGIONS].revents)
			admit(listener);
	}
}

int main(int argc, char **argv)
{
	struct seal_options options = {.size = sizeof(options), .news = news};
	int i, listener, error;

	if (argc != 3) {
		fprintf(stderr, "usage: server FILE SOCKET\n");
		return 2;
	}
	for (i = 0; i < REGIONS; i++)
		regions[i].connection = -1;
	fd = open(argv[1], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)REGIONS * REGION_SIZE)) {
		perror(argv[1]);
		return 1;
	}
	error = seal_open(&client, &options);
	if (!error)
		error = register_file();
	if (error) {
		fprintf(stderr, "server: %s\n", seal_failure(client));
		return 1;
	}
	listener = listen_at(argv[2]);
	if (listener < 0) {
		perror(argv[2]);
		return 1;
	}
	printf("serving\n");
	fflush(stdout);
	error = run(listener);
	fprintf(stderr, "server: %s\n", strerror(-error));
	return 1;
}

/* Reads and writes with protection information: through a PI channel, and by a bare io_uring loop on the
 * same blocks of the same device, alternately.
 *
 *	pi_device SOCKET MEMORY DEVICE POSITION INTERVAL METADATA ROUNDS
 *
 * SOCKET and MEMORY are the descriptors of a channel, DEVICE is one of the block device, POSITION (bytes) is
 * where the sealed file's first 1 MiB lies on it. Prints "NAME BYTES FIGURE FLOOR" in microseconds for each
 * round. The tuples are those that the device has: they are checked by it, and by nobody else, so that only
 * the way of a request is measured. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "seal_pi.h"
#include "uring.h"

#define CHUNK (512u << 10) /* as native/integrity/device/transfer.c */
#define MOST (1u << 20)

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void die(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error));
	exit(1);
}

struct subject {
	struct seal_pi *pi;
	struct pi_ring ring;
	int device;
	uint64_t position;
	unsigned char *data, *tags; /* of the bare loop */
	const struct seal_pi_facts *facts;
};

static void by_channel(struct subject *it, int write, size_t size)
{
	struct seal_channel_error error;
	size_t room;
	struct iovec data = {seal_pi_memory(it->pi, &room), size};
	struct seal_pi_io io = {
		.size = sizeof(io),
		.pi = it->tags,
		.pi_length = size / it->facts->interval * it->facts->metadata,
		.provided = SEAL_FIELD_TAG | SEAL_FIELD_CHECKSUM | SEAL_FIELD_REFTAG,
		.verify = SEAL_FIELD_CHECKSUM | SEAL_FIELD_REFTAG,
		.checkers = SEAL_BY_DEVICE,
	};
	ssize_t done = write ? seal_pi_writev(it->pi, &data, 1, &io, &error)
			     : seal_pi_readv(it->pi, &data, 1, &io, &error);

	if (done != (ssize_t)size)
		die("channel", (int)-done);
}

/* What the channel asks of the kernel, and nothing else. */
static void bare(struct subject *it, int write, size_t size, const unsigned char *saved)
{
	const struct pi_command command = {.device = it->device, .write = write, .checks = 3};
	struct pi_transfer transfers[2];
	uint32_t count = 0;
	int error;

	for (size_t at = 0; at < size; at += CHUNK, count++) {
		size_t part = size - at < CHUNK ? size - at : CHUNK,
		       first = at / it->facts->interval;

		transfers[count] = (struct pi_transfer){
			.data = {it->data + at, part},
			.pi = it->tags + first * it->facts->metadata,
			.pi_length = (uint32_t)(part / it->facts->interval * it->facts->metadata),
			.position = it->position + at,
			.seed = first,
		};
	}
	/* The kernel writes sectors into the reference tags of what it sends. */
	if (write)
		memcpy(it->tags, saved, size / it->facts->interval * it->facts->metadata);
	error = pi_ring_run(&it->ring, &command, transfers, count);
	for (uint32_t i = 0; !error && i < count; i++)
		if (transfers[i].result != (int)transfers[i].data.iov_len)
			error = transfers[i].result;
	if (error)
		die("io_uring", -error);
}

static double each(struct subject *it, int write, size_t size, int direct,
		   const unsigned char *saved)
{
	int calls = size > 65536 ? 8 : 64;
	double begun = now();

	for (int i = 0; i < calls; i++) {
		if (direct)
			bare(it, write, size, saved);
		else
			by_channel(it, write, size);
	}
	return (now() - begun) / calls;
}

static void compare(struct subject *it, size_t size, int rounds, unsigned char *saved)
{
	size_t tags = size / it->facts->interval * it->facts->metadata;

	/* Tuples that the device accepts: those of what stands there. */
	bare(it, 0, size, saved);
	memcpy(saved, it->tags, tags);
	for (int write = 0; write < 2; write++) {
		for (int round = 0; round < rounds; round++) {
			double floor, figure;

			memcpy(it->tags, saved, tags);
			figure = each(it, write, size, 0, saved);
			floor = each(it, write, size, 1, saved);
			printf("%s %zu %.1f %.1f\n", write ? "write" : "read", size, figure, floor);
		}
	}
}

static void *room(size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (at == MAP_FAILED)
		die("mmap", errno);
	return at;
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = {4096, 65536, MOST};
	struct subject it = {0};
	struct seal_pi_facts facts = {0};
	unsigned char *saved;
	size_t most;
	int error;

	if (argc != 8)
		return 2;
	it.device = atoi(argv[3]);
	it.position = strtoull(argv[4], NULL, 10);
	facts.interval = (uint32_t)atoi(argv[5]);
	facts.metadata = (uint32_t)atoi(argv[6]);
	facts.block = facts.interval;
	error = seal_pi_attach(atoi(argv[1]), atoi(argv[2]), &facts, &it.pi);
	if (!error)
		error = pi_ring_open(&it.ring);
	if (error)
		die("opening", -error);
	it.facts = seal_pi_facts(it.pi);
	it.data = room(MOST);
	it.tags = room(MOST / facts.interval * facts.metadata);
	saved = room(MOST / facts.interval * facts.metadata);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		/* The data that the tuples of the first read belong to. */
		by_channel(&it, 0, sizes[i]);
		memcpy(it.data, seal_pi_memory(it.pi, &most), sizes[i]);
		compare(&it, sizes[i], atoi(argv[7]), saved);
	}
	seal_pi_close(it.pi);
	pi_ring_close(&it.ring);
	return 0;
}

/* A ring with one registered range, and its client in the same process. Each test program has its own. */
#ifndef SEALSVC_TESTS_RING_CLIENT_H
#define SEALSVC_TESTS_RING_CLIENT_H

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "abi/seal_ring_geometry.h"
#include "check.h"
#include "sealsvc/rings.h"

#define BLOCK 4096u
#define EXTENT_END (64u * BLOCK)

static unsigned reports;
static struct seal_ring_report last;

static void deliver(void *context, const struct seal_ring_report *report)
{
	(void)context;
	last = *report;
	reports++;
}

/* A ring with one registered range, and the client's view of both. */
struct bench {
	pthread_mutex_t lock;
	struct seal_rings *rings;
	uint32_t ring, file;
	int fds[SEAL_RING_FDS];
	struct seal_mailbox *mailbox;
	char *commands;
	const struct seal_slot *slots;
	size_t size, table_size;
};

static int map_of(uint64_t logical, uint64_t length)
{
	const struct seal_map_extent extent = {logical, 1 << 20, length, 0};
	int fd = memfd_create("map", MFD_CLOEXEC);

	CHECK(write(fd, &extent, sizeof(extent)) == sizeof(extent));
	return fd;
}

static void open_shaped(struct bench *b, const struct seal_ring_shape *shape)
{
	const struct seal_registration registration = {
		.id = 7,
		.end = EXTENT_END,
		.grace = 1000000000,
		.block_size = BLOCK,
		.policy = SEAL_POLICY_WAIT,
		.iomode = SEAL_RW,
		.watched = 1,
	};
	int64_t made;

	memset(b, 0, sizeof(*b));
	pthread_mutex_init(&b->lock, NULL);
	CHECK(seal_rings_open(&b->rings, &b->lock, deliver, NULL) == 0);
	made = seal_ring_create(b->rings, shape);
	CHECK(made >= 0);
	b->ring = (uint32_t)made;
	made = seal_ring_register(b->rings, b->ring, &registration, -1);
	CHECK(made == 0);
	CHECK(seal_ring_freshen(b->rings, b->ring, 0, map_of(0, EXTENT_END)) == 0);
	CHECK(seal_ring_descriptors(b->rings, b->ring, b->fds) == 0);
	b->size = (size_t)lseek(b->fds[SEAL_RING_FD_MEMORY], 0, SEEK_END);
	b->table_size = shape->slots * sizeof(struct seal_slot);
	b->mailbox = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  b->fds[SEAL_RING_FD_MEMORY], 0);
	b->slots = mmap(NULL, b->table_size, PROT_READ, MAP_SHARED, b->fds[SEAL_RING_FD_TABLE], 0);
	CHECK(b->mailbox != MAP_FAILED && b->slots != MAP_FAILED);
	b->commands = (char *)b->mailbox + b->mailbox->command_offset;
	reports = 0;
}

static void open_bench(struct bench *b, uint32_t slots)
{
	open_shaped(b, &(struct seal_ring_shape){
			       .slots = slots, .commands = 4096, .data = 4096, .events = 8});
}

static void close_bench(struct bench *b)
{
	seal_rings_close(b->rings);
	munmap(b->mailbox, b->size);
	munmap((void *)b->slots, b->table_size);
	for (int i = 0; i < SEAL_RING_FDS; i++)
		close(b->fds[i]);
	pthread_mutex_destroy(&b->lock);
}

static void move_head(struct bench *b, uint32_t by)
{
	const struct ring_geometry ring = ring_ours(b->mailbox->command_size);

	__atomic_store_n(&b->mailbox->command_head,
			 ring_forward(ring, b->mailbox->command_head, by), __ATOMIC_RELEASE);
}

static uint32_t to_the_end(const struct bench *b)
{
	const struct ring_geometry ring = ring_ours(b->mailbox->command_size);

	return ring.size - ring_place(ring, b->mailbox->command_head);
}

static struct seal_command *at_head(const struct bench *b)
{
	return (void *)(b->commands + b->mailbox->command_size - to_the_end(b));
}

/* Fill the rest of the ring with a PAD entry. */
static void pad(struct bench *b)
{
	uint32_t rest = to_the_end(b);

	at_head(b)->size = rest;
	at_head(b)->op = SEAL_CMD_PAD;
	move_head(b, rest);
}

/* Put a command into the ring: where it stands. */
static struct seal_command *put(struct bench *b, struct seal_command command)
{
	struct seal_command *entry;

	if (to_the_end(b) < sizeof(command))
		pad(b);
	entry = at_head(b);
	command.size = sizeof(command);
	*entry = command;
	move_head(b, sizeof(command));
	return entry;
}

/* Put a command, have it served, and look at its completion. */
static struct seal_command run(struct bench *b, struct seal_command command)
{
	struct seal_command *entry = put(b, command);

	CHECK(seal_ring_poll(b->rings, b->ring, 8) >= 1);
	return *entry;
}

static struct seal_command grant(struct bench *b, uint64_t offset, uint64_t length)
{
	return run(b, (struct seal_command){.op = SEAL_CMD_GRANT,
					    .offset = offset,
					    .length = length,
					    .iomode = SEAL_RW,
					    .cookie = 42});
}

static struct seal_command about(struct bench *b, uint16_t op, struct seal_command of)
{
	return run(b, (struct seal_command){.op = op, .slot = of.slot, .word = of.word});
}

static int judge(struct bench *b, int op, uint64_t offset, uint64_t length, int own, int absolved,
		 int *error, uint64_t *unproven)
{
	const struct seal_operation operation = {.op = op, .offset = offset, .length = length};
	const struct seal_traits traits = {.block_size = BLOCK};
	int policy;

	*error = 0;
	*unproven = 0;
	pthread_mutex_lock(&b->lock);
	policy = seal_rings_judge(b->rings, seal_ring_key(b->ring, 0), &operation, &traits, own,
				  absolved, error, unproven);
	pthread_mutex_unlock(&b->lock);
	return policy;
}

#endif

/* A client that scribbles: the input is laid over all that it can write, piece by piece, and the keeper
 * looks after each. It may flag the ring as broken; it may not read or write beyond it. */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "sealsvc/rings.h"

#define BLOCK 4096
#define COMMANDS 1024

static void deliver(void *context, const struct seal_ring_report *report)
{
	(void)context;
	(void)report;
}

static void begin(void *context)
{
	(void)context;
}

static int map_of_one(void)
{
	const struct seal_map_extent extent = {0, 1 << 20, 64 * BLOCK, 0};
	int fd = memfd_create("map", MFD_CLOEXEC);

	if (write(fd, &extent, sizeof(extent)) < 0)
		__builtin_trap();
	return fd;
}

static void judge(struct seal_rings *rings, uint32_t ring, pthread_mutex_t *lock, uint64_t offset)
{
	const struct seal_operation operation = {
		.op = SEAL_OP_PUNCH, .offset = offset, .length = BLOCK};
	const struct seal_traits traits = {.block_size = BLOCK};
	uint64_t unproven = 0;
	int error = 0;

	pthread_mutex_lock(lock);
	seal_rings_judge(rings, seal_ring_key(ring, 0), &operation, &traits, 0, 0, &error,
			 &unproven);
	pthread_mutex_unlock(lock);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	const struct seal_ring_shape shape = {
		.slots = 8, .commands = COMMANDS, .data = BLOCK, .events = 4};
	const struct seal_registration registration = {
		.id = 7,
		.end = 64 * BLOCK,
		.block_size = BLOCK,
		.policy = SEAL_POLICY_WAIT,
		.iomode = SEAL_RW,
		.watched = 1,
	};
	struct seal_mailbox *mailbox;
	struct seal_rings *rings;
	int fds[SEAL_RING_FDS], channel[2];
	uint32_t ring;
	char *commands;
	size_t all;

	if (seal_rings_open(&rings, &lock, deliver, NULL) < 0)
		__builtin_trap();
	ring = (uint32_t)seal_ring_create(rings, &shape);
	seal_ring_register(rings, ring, &registration, -1);
	seal_ring_freshen(rings, ring, 0, map_of_one());
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel) < 0 ||
	    seal_ring_channel(rings, ring, 0, channel[0]) < 0)
		__builtin_trap();
	if (seal_ring_descriptors(rings, ring, fds) < 0)
		__builtin_trap();
	all = (size_t)lseek(fds[SEAL_RING_FD_MEMORY], 0, SEEK_END);
	mailbox = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, fds[SEAL_RING_FD_MEMORY], 0);
	commands = (char *)mailbox + BLOCK;
	for (size_t at = 0; at + 2 < size;) {
		/* The first byte says how much, the second what is done with it. */
		size_t piece = data[at] % 112 + 1;
		uint32_t place = mailbox->command_head % COMMANDS;
		uint8_t how = data[at + 1];

		at += 2;
		piece = piece > size - at ? size - at : piece;
		if (how & 1) { /* anywhere in the mailbox, heads and flags included */
			memcpy((char *)mailbox + how % sizeof(*mailbox), data + at,
			       piece > sizeof(*mailbox) - how % sizeof(*mailbox)
				       ? sizeof(*mailbox) - how % sizeof(*mailbox)
				       : piece);
		} else { /* an entry as it should be, with this inside */
			struct seal_pi_command entry = {0};
			struct seal_command *command = &entry.command;
			size_t room = COMMANDS - place;

			memcpy((char *)&entry + 4, data + at,
			       piece > sizeof(entry) - 4 ? sizeof(entry) - 4 : piece);
			command->op = how >> 1 & 63;
			command->size =
				command->op == SEAL_CMD_PI_WRITE ? sizeof(entry) : sizeof(*command);
			if (how & 128)
				command->offset %= 64 * BLOCK;
			memcpy(commands + place, &entry,
			       room < command->size ? room : command->size);
			mailbox->command_head += command->size;
		}
		at += piece;
		seal_ring_poll(rings, ring, 16);
		judge(rings, ring, &lock, (uint64_t)how * BLOCK);
		if (how == 254)
			seal_rings_tick(rings, UINT64_MAX / 4);
	}
	close(channel[1]);
	seal_rings_hand_over(rings, begin, NULL);
	seal_rings_replay(rings);
	seal_ring_unregister(rings, ring, 0, SEAL_REVOKED);
	munmap(mailbox, all);
	for (int i = 0; i < SEAL_RING_FDS; i++)
		close(fds[i]);
	seal_rings_close(rings);
	return 0;
}

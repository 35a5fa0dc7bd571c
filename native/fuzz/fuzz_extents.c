/* A map of any extents, in whatever order: what is asked of it stays inside it, and inside the answer. */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sealsvc/rings.h"

#define BLOCK 4096

static void deliver(void *context, const struct seal_ring_report *report)
{
	(void)context;
	(void)report;
}

static int map_of(const uint8_t *data, size_t size)
{
	int fd = memfd_create("map", MFD_CLOEXEC);

	if (write(fd, data, size) != (ssize_t)size)
		__builtin_trap();
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	const struct seal_ring_shape shape = {
		.slots = 8, .commands = 1024, .data = BLOCK, .events = 4};
	const struct seal_registration registration = {
		.id = 7,
		.end = UINT64_C(1) << 62,
		.block_size = BLOCK,
		.policy = SEAL_POLICY_WAIT,
		.iomode = SEAL_RW,
	};
	struct seal_command commands[2] = {
		{.size = sizeof(commands[0]), .op = SEAL_CMD_GRANT, .iomode = SEAL_RW},
		{.size = sizeof(commands[0]), .op = SEAL_CMD_EXTENTS},
	};
	struct seal_mailbox *mailbox;
	struct seal_rings *rings;
	int fds[SEAL_RING_FDS];
	uint32_t ring;
	size_t all;

	if (size < 24 || seal_rings_open(&rings, &lock, deliver, NULL) < 0)
		return 0;
	ring = (uint32_t)seal_ring_create(rings, &shape);
	seal_ring_register(rings, ring, &registration, -1);
	seal_ring_freshen(rings, ring, 0, map_of(data + 24, size - 24));
	if (seal_ring_descriptors(rings, ring, fds) < 0)
		__builtin_trap();
	all = (size_t)lseek(fds[SEAL_RING_FD_MEMORY], 0, SEEK_END);
	mailbox = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_SHARED, fds[SEAL_RING_FD_MEMORY], 0);
	memcpy(&commands[0].offset, data, 16);
	memcpy(&commands[1].offset, data, 16);
	memcpy(&commands[1].data, data + 16, 8);
	memcpy((char *)mailbox + BLOCK, commands, sizeof(commands));
	mailbox->command_head = sizeof(commands);
	seal_ring_poll(rings, ring, 4);
	munmap(mailbox, all);
	for (int i = 0; i < SEAL_RING_FDS; i++)
		close(fds[i]);
	seal_rings_close(rings);
	return 0;
}

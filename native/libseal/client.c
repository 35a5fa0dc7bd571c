/* A client from its opening to its end. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define PAGE 4096
#define DEFAULT_SOCKET "/run/sealsvc/control.sock"

static int set_options(struct seal_client *client, const struct seal_options *given)
{
	struct seal_options *options = &client->options;
	const char *path;

	if (given)
		memcpy(options, given,
		       given->size < sizeof(*options) ? given->size : sizeof(*options));
	options->slots = options->slots ? options->slots : 1024;
	options->commands = options->commands ? options->commands : 16384;
	options->events = options->events ? options->events : 256;
	options->data = options->data ? options->data : 65536;
	options->timeout = options->timeout ? options->timeout : 30 * CLIENT_SECOND;
	options->secret[sizeof(options->secret) - 1] = '\0';
	path = options->socket ? options->socket : getenv("SEALSVC_SOCKET");
	path = path ? path : DEFAULT_SOCKET;
	if (strlen(path) >= sizeof(client->socket_path))
		return -ENAMETOOLONG;
	strcpy(client->socket_path, path);
	return 0;
}

static int make_polls(struct seal_client *client)
{
	struct epoll_event event = {.events = EPOLLIN};

	client->poll = epoll_create1(EPOLL_CLOEXEC);
	client->self = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (client->poll < 0 || client->self < 0 ||
	    epoll_ctl(client->poll, EPOLL_CTL_ADD, client->self, &event) < 0)
		return -errno;
	client->alive =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (client->alive == MAP_FAILED) {
		client->alive = NULL;
		return -errno;
	}
	if (madvise(client->alive, PAGE, MADV_WIPEONFORK) < 0)
		return -errno;
	*client->alive = 1;
	return 0;
}

static void *map(int fd, size_t size, int protection)
{
	void *at = mmap(NULL, size, protection, MAP_SHARED, fd, 0);

	return at == MAP_FAILED ? NULL : at;
}

static int is_inside(const struct seal_client *client, uint64_t offset, uint64_t size)
{
	return offset <= client->memory_size && size <= client->memory_size - offset;
}

/* The keeper wrote it; but another process of ours may have been at it since. */
static int read_mailbox(struct seal_client *client)
{
	const struct seal_mailbox box = *client->mailbox;

	if (box.magic != SEAL_RING_MAGIC || box.version != SEAL_RING_VERSION)
		return -EPROTONOSUPPORT;
	if (!box.command_size || box.command_size % SEAL_RING_ALIGN || !box.event_count ||
	    !is_inside(client, box.command_offset, box.command_size) ||
	    !is_inside(client, box.event_offset,
		       (uint64_t)box.event_count * sizeof(struct seal_ring_event)) ||
	    !is_inside(client, box.data_offset, box.data_size))
		return -EPROTO;
	client->command_ring = ring_ours(box.command_size);
	client->event_ring = ring_ours(box.event_count);
	if (!ring_is_position(client->command_ring, box.command_head, SEAL_RING_ALIGN) ||
	    !ring_is_position(client->command_ring, box.reaped, SEAL_RING_ALIGN) ||
	    !ring_is_position(client->event_ring, box.event_tail, 1) ||
	    ring_ahead(client->command_ring, box.reaped, box.command_head) > box.command_size)
		return -EPROTO;
	client->commands = (char *)client->mailbox + box.command_offset;
	client->events = (void *)((char *)client->mailbox + box.event_offset);
	client->data = (char *)client->mailbox + box.data_offset;
	client->data_size = box.data_size;
	client->head = box.command_head;
	client->reaped = box.reaped;
	client->event_tail = box.event_tail;
	client->spin = client->options.spin;
	/* Apart from the ids of whoever used the ring before us. */
	client->next_id = (uint64_t)box.command_head << 16;
	return 0;
}

/* Commands that were pending when their sender died: those that are done are told of, or thrown away. */
static int adopt_entries(struct seal_client *client)
{
	for (uint32_t at = client->reaped; at != client->head;) {
		struct seal_command *entry =
			(void *)(client->commands + ring_place(client->command_ring, at));
		uint32_t size = entry->size;

		if (!ring_holds(client->command_ring, at, client->head, size, SEAL_RING_ALIGN))
			return -EPROTO;
		if (entry->op != SEAL_CMD_PAD && size >= sizeof(*entry))
			entry->flags &= (uint16_t)~ENTRY_WAITED;
		at = ring_forward(client->command_ring, at, size);
	}
	return 0;
}

static int map_ring(struct seal_client *client)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct stat memory, table;
	int error;

	if (fstat(client->fds[MEMORY], &memory) < 0 || fstat(client->fds[TABLE], &table) < 0)
		return -errno;
	client->memory_size = (size_t)memory.st_size;
	client->table_size = (size_t)table.st_size;
	client->slot_count = (uint32_t)(client->table_size / sizeof(struct seal_slot));
	if (client->memory_size < sizeof(struct seal_mailbox) || !client->slot_count)
		return -EPROTO;
	client->mailbox = map(client->fds[MEMORY], client->memory_size, PROT_READ | PROT_WRITE);
	client->slots = map(client->fds[TABLE], client->table_size, PROT_READ);
	if (!client->mailbox || !client->slots)
		return -errno;
	error = read_mailbox(client);
	if (!error)
		error = adopt_entries(client);
	if (error)
		return error;
	if (epoll_ctl(client->poll, EPOLL_CTL_ADD, client->fds[BELL], &event) < 0)
		return -errno;
	/* Something may have come before. */
	eventfd_write(client->self, 1);
	ring_rest(client);
	return 0;
}

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void release(struct seal_client *client)
{
	if (client->mailbox)
		munmap(client->mailbox, client->memory_size);
	if (client->slots)
		munmap((void *)client->slots, client->table_size);
	for (int i = 0; i < DESCRIPTORS; i++)
		close_if_open(client->fds[i]);
	close_if_open(client->socket);
	close_if_open(client->self);
	close_if_open(client->poll);
	if (client->alive)
		munmap(client->alive, PAGE);
	free(client);
}

/* Of the last seal_open that failed, in this thread: it leaves no client that could have it. */
static _Thread_local char open_failure[sizeof(((struct seal_client *)0)->failure)];

int seal_open(struct seal_client **out, const struct seal_options *options)
{
	struct seal_client *client = calloc(1, sizeof(*client));
	int error;

	*out = NULL;
	if (!client) {
		snprintf(open_failure, sizeof(open_failure), "%s", strerror(ENOMEM));
		return -ENOMEM;
	}
	client->socket = client->poll = client->self = -1;
	memset(client->fds, -1, sizeof(client->fds));
	error = set_options(client, options);
	if (!error)
		error = make_polls(client);
	if (!error)
		error = control_connect(client);
	if (!error)
		error = control_attach(client);
	if (!error)
		error = map_ring(client);
	if (error) {
		snprintf(open_failure, sizeof(open_failure), "%s",
			 client->failure[0] ? client->failure : strerror(-error));
		release(client);
		return error;
	}
	*out = client;
	return 0;
}

void seal_close(struct seal_client *client)
{
	if (client)
		release(client);
}

int seal_reconnect(struct seal_client *client)
{
	int fds[DESCRIPTORS], error = client_check(client);

	if (error)
		return error;
	control_close(client);
	client->options.ring = client->ring;
	memcpy(client->options.secret, client->secret, sizeof(client->secret));
	memcpy(fds, client->fds, sizeof(fds));
	error = control_connect(client);
	if (!error)
		error = control_attach(client);
	if (error) {
		control_close(client);
		return error;
	}
	/* It is the ring that we have: the new descriptors of it are not needed. */
	for (int i = 0; i < DESCRIPTORS; i++)
		close(client->fds[i]);
	memcpy(client->fds, fds, sizeof(fds));
	return 0;
}

int seal_identity(const struct seal_client *client, uint32_t *ring, char secret[17])
{
	int error = client_check(client);

	if (error)
		return error;
	*ring = client->ring;
	memcpy(secret, client->secret, sizeof(client->secret));
	return 0;
}

const char *seal_failure(const struct seal_client *client)
{
	return client ? client->failure : open_failure;
}

int seal_fd(const struct seal_client *client)
{
	return client->poll;
}

int seal_is_connected(const struct seal_client *client)
{
	return client->socket >= 0;
}

int seal_missed(struct seal_client *client)
{
	uint32_t before = __atomic_fetch_and(&client->mailbox->flags, ~(uint32_t)SEAL_RING_MISSED,
					     __ATOMIC_ACQ_REL);

	return (before & SEAL_RING_MISSED) != 0;
}

const struct seal_slot *seal_slot_at(const struct seal_client *client, uint32_t number)
{
	return number < client->slot_count ? &client->slots[number] : NULL;
}

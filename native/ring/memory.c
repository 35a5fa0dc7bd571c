/* What a ring is made of: two memfds, two doorbells, and their layout. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

#ifndef F_SEAL_FUTURE_WRITE /* since v5.1 */
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#define MAX_SLOTS (1u << 24)
#define MAX_BYTES (1u << 26)
#define MAX_EVENTS (1u << 16)
#define PAGE 4096u
#define LEAST_COMMANDS 192u /* two of struct seal_command */

uint64_t ring_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

struct ring *ring_find(struct seal_rings *rings, uint32_t number)
{
	struct ring *ring = rings->ring[number % SEAL_RINGS_MAX];

	return ring && ring->number == number ? ring : NULL;
}

void ring_flag(struct ring *ring, uint32_t flag)
{
	ring->flags |= flag;
	__atomic_fetch_or(&ring->mailbox->flags, flag, __ATOMIC_RELEASE);
}

void ring_bell(struct ring *ring)
{
	const eventfd_t one = 1;

	/* After what we published, before we look whether the client sleeps: seal_ring.h. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&ring->mailbox->bell_wanted, __ATOMIC_RELAXED)) {
		ring->counters->spared++;
		return;
	}
	ring->counters->rung++;
	__atomic_store_n(&ring->mailbox->bell_wanted, 0, __ATOMIC_RELAXED);
	/* Cannot fail, and cannot block: nobody else can write to it. */
	if (write(ring->bell_fd, &one, sizeof(one)) < 0)
		ring_flag(ring, SEAL_RING_MISSED);
}

static int is_between(uint32_t n, uint32_t least, uint32_t most)
{
	return n >= least && n <= most;
}

static int is_possible(const struct seal_ring_shape *shape)
{
	return shape->slots >= 1 && shape->slots <= MAX_SLOTS &&
	       is_between(shape->commands, LEAST_COMMANDS, MAX_BYTES) &&
	       shape->commands % SEAL_RING_ALIGN == 0 && is_between(shape->events, 2, MAX_EVENTS) &&
	       (shape->data == 0 || is_between(shape->data, PAGE, MAX_BYTES));
}

static size_t pages(size_t bytes)
{
	return (bytes + PAGE - 1) & ~(size_t)(PAGE - 1);
}

/* A memfd of this size for ever, mapped writable here. */
static void *make_memory(const char *name, size_t size, int *fd)
{
	void *at;

	*fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0 || ftruncate(*fd, (off_t)size) < 0)
		return NULL;
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

static int lay_out(struct ring *ring)
{
	const struct seal_ring_shape *shape = &ring->shape;
	size_t commands = PAGE, events = commands + pages(shape->commands);
	size_t data = events + pages(shape->events * sizeof(struct seal_ring_event));
	char *base;

	ring->memory_size = data + pages(shape->data);
	base = make_memory("sealsvc-ring", ring->memory_size, &ring->memory_fd);
	if (!base)
		return -errno;
	ring->mailbox = (void *)base;
	ring->commands = (void *)(base + commands);
	ring->events = (void *)(base + events);
	ring->data = base + data;
	*ring->mailbox = (struct seal_mailbox){
		.magic = SEAL_RING_MAGIC,
		.version = SEAL_RING_VERSION,
		.features = SEAL_FEATURE_OUT_OF_ORDER | SEAL_FEATURE_EXTENTS | SEAL_FEATURE_COPY |
			    SEAL_FEATURE_PI,
		.command_offset = (uint32_t)commands,
		.command_size = shape->commands,
		.event_offset = (uint32_t)events,
		.event_count = shape->events,
		.data_offset = (uint32_t)data,
		.data_size = shape->data,
		.slots = shape->slots,
		.ring = ring->number,
		.kick_wanted = 1,
	};
	/* A client that could shrink it would have us die of SIGBUS. */
	if (fcntl(ring->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	return 0;
}

/* Our own mapping stays writable; every later one, by whatever descriptor, is read-only. */
static int make_table(struct ring *ring)
{
	size_t size = (size_t)ring->shape.slots * sizeof(*ring->slots);

	ring->slots = make_memory("sealsvc-table", size, &ring->table_fd);
	if (!ring->slots)
		return -errno;
	if (fcntl(ring->table_fd, F_ADD_SEALS,
		  F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0)
		return -errno;
	ring->free = mmap(NULL, ring->shape.slots * sizeof(*ring->free), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ring->free == MAP_FAILED) {
		ring->free = NULL;
		return -ENOMEM;
	}
	return 0;
}

void ring_lane_free(struct lane *lane)
{
	if (lane)
		close(lane->socket);
	free(lane);
}

void ring_free(struct ring *ring)
{
	size_t slots = ring->shape.slots;

	if (ring->mailbox)
		munmap(ring->mailbox, ring->memory_size);
	if (ring->slots)
		munmap(ring->slots, slots * sizeof(*ring->slots));
	if (ring->free)
		munmap(ring->free, slots * sizeof(*ring->free));
	for (int i = 0; ring->files && i < SEAL_RING_FILES; i++) {
		free(ring->files[i].map);
		ring_lane_free(ring->files[i].lane);
	}
	free(ring->files);
	for (int i = 0; i < 4; i++) {
		int fd = (int[]){ring->memory_fd, ring->table_fd, ring->kick_fd, ring->bell_fd}[i];

		if (fd >= 0)
			close(fd);
	}
	free(ring);
}

static int fill(struct seal_rings *rings, struct ring *ring)
{
	/* Edge triggered: the number in the eventfd is the client's business, and nobody reads it. */
	struct epoll_event event = {.events = EPOLLIN | EPOLLET,
				    .data.u64 = ring->number % SEAL_RINGS_MAX};
	int error = lay_out(ring);

	if (!error)
		error = make_table(ring);
	if (error)
		return error;
	ring->files = calloc(SEAL_RING_FILES, sizeof(*ring->files));
	if (!ring->files)
		return -ENOMEM;
	ring->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ring->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ring->kick_fd < 0 || ring->bell_fd < 0 ||
	    epoll_ctl(rings->epoll, EPOLL_CTL_ADD, ring->kick_fd, &event) < 0)
		return -errno;
	return 0;
}

static int64_t free_number(const struct seal_rings *rings)
{
	for (uint32_t i = 0; i < SEAL_RINGS_MAX; i++)
		if (!rings->ring[(rings->generation + i) % SEAL_RINGS_MAX])
			return (rings->generation + i) % SEAL_RINGS_MAX;
	return -ENOSPC;
}

int64_t seal_ring_create(struct seal_rings *rings, const struct seal_ring_shape *shape)
{
	struct ring *ring;
	int64_t place;
	int error;

	if (!is_possible(shape))
		return -EINVAL;
	ring = calloc(1, sizeof(*ring));
	if (!ring)
		return -ENOMEM;
	ring->shape = *shape;
	ring->command_ring = ring_ours(shape->commands);
	ring->event_ring = ring_ours(shape->events);
	ring->counters = &rings->counters;
	ring->memory_fd = ring->table_fd = ring->kick_fd = ring->bell_fd = -1;
	ring->next_expiry = UINT64_MAX;
	pthread_mutex_lock(rings->lock);
	place = free_number(rings);
	if (place >= 0) {
		/* Numbers come again only after the table has been gone through often. */
		rings->generation++;
		ring->number = (uint32_t)place +
			       (rings->generation % (UINT32_MAX / SEAL_RINGS_MAX)) * SEAL_RINGS_MAX;
		error = fill(rings, ring);
		if (error)
			place = error;
		else
			rings->ring[place] = ring;
	}
	pthread_mutex_unlock(rings->lock);
	if (place < 0) {
		ring_free(ring);
		return place;
	}
	return ring->number;
}

static int make_bell(const struct ring *ring)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET};
	int epoll = epoll_create1(EPOLL_CLOEXEC), error;

	if (epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, ring->bell_fd, &event) < 0) {
		error = -errno;
		close(epoll);
		return error;
	}
	return epoll < 0 ? -errno : epoll;
}

static void close_all(int fds[SEAL_RING_FDS])
{
	for (int i = 0; i < SEAL_RING_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

int seal_ring_descriptors(struct seal_rings *rings, uint32_t number, int fds[SEAL_RING_FDS])
{
	struct ring *ring;
	int error = -ENOENT;

	memset(fds, -1, sizeof(int) * SEAL_RING_FDS);
	pthread_mutex_lock(rings->lock);
	ring = ring_find(rings, number);
	if (ring) {
		fds[SEAL_RING_FD_MEMORY] = fcntl(ring->memory_fd, F_DUPFD_CLOEXEC, 0);
		fds[SEAL_RING_FD_TABLE] = fcntl(ring->table_fd, F_DUPFD_CLOEXEC, 0);
		fds[SEAL_RING_FD_KICK] = fcntl(ring->kick_fd, F_DUPFD_CLOEXEC, 0);
		fds[SEAL_RING_FD_BELL] = make_bell(ring);
		error = 0;
		for (int i = 0; i < SEAL_RING_FDS; i++)
			if (fds[i] < 0)
				error = -EMFILE;
	}
	pthread_mutex_unlock(rings->lock);
	if (error)
		close_all(fds);
	return error;
}

int seal_ring_drop(struct seal_rings *rings, uint32_t number)
{
	struct ring *ring;
	int error = -ENOENT;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring) {
		error = 0;
		for (int i = 0; i < SEAL_RING_FILES; i++)
			if (ring->files[i].is.id)
				error = -EBUSY;
	}
	if (ring && !error) {
		rings->ring[number % SEAL_RINGS_MAX] = NULL;
		epoll_ctl(rings->epoll, EPOLL_CTL_DEL, ring->kick_fd, NULL);
		ring_flag(ring, SEAL_RING_GONE);
		__atomic_store_n(&ring->mailbox->bell_wanted, 1, __ATOMIC_RELAXED);
		ring_bell(ring);
		ring_free(ring);
	}
	return error;
}

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ublk.h"
#include "uring.h"

/* What an entry's user_data says: whose it is in the top bits, then queue and tag. The place of a queue
 * that was closed is used again, while entries of the old one may still come: those have another
 * generation. */
#define KIND_SHIFT 62
#define GENERATION_SHIFT 40
#define GENERATION_MASK 0x3fffffu
#define PLACE_SHIFT 16
#define PLACE_MASK 0xffffffu
enum { KIND_IO, KIND_USER, KIND_WAKE };

/* Whose a tag is. The kernel hands it out (KERNEL -> OURS, or LATE: a buffer is wanted), and gets it
 * back by a commit; after an abort nobody has it. */
enum state { KERNEL, OURS, LATE, ABORTED };

struct ublk_io {
	_Atomic(struct ublk_io *) next; /* in the list of those that other threads completed */
	struct ublk_queue *queue;
	void *buffer;
	int result;
	uint16_t tag;
	uint8_t state;
	_Atomic uint8_t elsewhere; /* completed by another thread, not sent yet */
};

struct ublk_queue {
	struct ublk_worker *worker;
	unsigned place, generation; /* among the worker's queues */
	uint16_t number, depth;
	unsigned gone;
	int fd;
	void *context;
	struct ublksrv_io_desc *descriptors;
	size_t descriptors_size;
	struct ublk_io ios[];
};

struct ublk_place {
	struct ublk_queue *queue; /* NULL: free */
	unsigned generation;
};

struct ublk_worker {
	struct uring ring;
	int wake;   /* eventfd */
	int waking; /* a read of it is under way */
	uint64_t woken;
	_Atomic(struct ublk_io *) elsewhere;
	struct ublk_place *places;
	unsigned place_count;
};

static struct io_uring_sqe *entry_for(struct ublk_worker *worker, unsigned kind, uint64_t rest)
{
	struct io_uring_sqe *entry = uring_entry(&worker->ring);

	if (entry)
		entry->user_data = (uint64_t)kind << KIND_SHIFT | rest;
	return entry;
}

static int watch_others(struct ublk_worker *worker)
{
	struct io_uring_sqe *entry = entry_for(worker, KIND_WAKE, 0);

	if (!entry)
		return -EAGAIN;
	entry->opcode = IORING_OP_READ;
	entry->fd = worker->wake;
	entry->addr = (uintptr_t)&worker->woken;
	entry->len = sizeof(worker->woken);
	worker->waking = 1;
	return 0;
}

int ublk_worker_open(unsigned in_flight, struct ublk_worker **worker)
{
	struct ublk_worker *made = calloc(1, sizeof(*made));
	int error;

	if (!made)
		return -ENOMEM;
	made->wake = eventfd(0, EFD_CLOEXEC);
	if (made->wake < 0) {
		error = -errno;
		free(made);
		return error;
	}
	/* Beside its completion each request may have one more entry of the caller's. */
	error = uring_open(&made->ring, in_flight < 256 ? in_flight + 8 : 256, 2 * in_flight + 64);
	if (error == 0)
		error = watch_others(made);
	if (error < 0) {
		ublk_worker_close(made);
		return error;
	}
	*worker = made;
	return 0;
}

void ublk_worker_close(struct ublk_worker *worker)
{
	uring_close(&worker->ring);
	close(worker->wake);
	free(worker->places);
	free(worker);
}

int ublk_worker_fd(const struct ublk_worker *worker)
{
	return worker->ring.fd;
}

struct io_uring_sqe *ublk_worker_entry(struct ublk_worker *worker, uint64_t user)
{
	return entry_for(worker, KIND_USER, user & ((1ULL << 48) - 1));
}

/* Hands the tag to the kernel, with the answer to its last request where it had one. */
static int send(struct ublk_io *io, uint32_t op, int result)
{
	struct ublk_queue *queue = io->queue;
	uint64_t who = (uint64_t)queue->generation << GENERATION_SHIFT |
		       (uint64_t)queue->place << PLACE_SHIFT | io->tag;
	struct io_uring_sqe *entry = entry_for(queue->worker, KIND_IO, who);
	struct ublksrv_io_cmd command = {.q_id = queue->number,
					 .tag = io->tag,
					 .result = result,
					 .addr = (uintptr_t)io->buffer};

	if (!entry)
		return -EAGAIN;
	entry->opcode = IORING_OP_URING_CMD;
	entry->fd = queue->fd;
	entry->cmd_op = op;
	memcpy(entry->cmd, &command, sizeof(command));
	io->state = KERNEL;
	return 0;
}

static int settle(struct ublk_worker *worker, struct ublk_queue *queue)
{
	unsigned place = 0;

	while (place < worker->place_count && worker->places[place].queue)
		place++;
	if (place == worker->place_count) {
		unsigned count = 2 * worker->place_count + 8;
		struct ublk_place *more =
			realloc(worker->places, count * sizeof(worker->places[0]));

		if (!more)
			return -ENOMEM;
		memset(more + place, 0, (count - place) * sizeof(more[0]));
		worker->places = more;
		worker->place_count = count;
	}
	worker->places[place].queue = queue;
	queue->place = place;
	queue->generation = ++worker->places[place].generation & GENERATION_MASK;
	return 0;
}

int ublk_queue_open(struct ublk_worker *worker, const struct ublk_device *device, unsigned number,
		    void *const *buffers, void *context, struct ublk_queue **queue)
{
	unsigned depth = device->info.queue_depth;
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct ublk_queue *made;
	off_t at = UBLKSRV_CMD_BUF_OFFSET +
		   (off_t)number * UBLK_MAX_QUEUE_DEPTH * (off_t)sizeof(struct ublksrv_io_desc);
	int error;

	if (number >= device->info.nr_hw_queues)
		return -EINVAL;
	made = calloc(1, sizeof(*made) + depth * sizeof(made->ios[0]));
	if (!made)
		return -ENOMEM;
	*made = (struct ublk_queue){.worker = worker,
				    .number = (uint16_t)number,
				    .depth = (uint16_t)depth,
				    .fd = device->fd,
				    .context = context};
	made->descriptors_size = (depth * sizeof(struct ublksrv_io_desc) + page - 1) / page * page;
	made->descriptors =
		mmap(NULL, made->descriptors_size, PROT_READ, MAP_SHARED, device->fd, at);
	if (made->descriptors == MAP_FAILED) {
		error = -errno;
		free(made);
		return error;
	}
	error = settle(worker, made);
	for (unsigned tag = 0; tag < depth && error == 0; tag++) {
		made->ios[tag].queue = made;
		made->ios[tag].tag = (uint16_t)tag;
		made->ios[tag].buffer = buffers ? buffers[tag] : NULL;
		error = send(&made->ios[tag], UBLK_U_IO_FETCH_REQ, -1);
	}
	if (error == 0)
		error = uring_enter(&worker->ring, 0, 0);
	if (error < 0) {
		ublk_queue_close(made);
		return error;
	}
	*queue = made;
	return 0;
}

void ublk_queue_close(struct ublk_queue *queue)
{
	struct ublk_worker *worker = queue->worker;

	if (queue->generation)
		worker->places[queue->place].queue = NULL;
	munmap(queue->descriptors, queue->descriptors_size);
	free(queue);
}

void *ublk_queue_context(const struct ublk_queue *queue)
{
	return queue->context;
}

struct ublk_worker *ublk_queue_worker(const struct ublk_queue *queue)
{
	return queue->worker;
}

void *ublk_buffer(const struct ublk_queue *queue, unsigned tag)
{
	return tag < queue->depth ? queue->ios[tag].buffer : NULL;
}

int ublk_give_buffer(struct ublk_queue *queue, unsigned tag, void *buffer)
{
	struct ublk_io *io = &queue->ios[tag];

	if (tag >= queue->depth || (io->state != OURS && io->state != LATE))
		return -EINVAL;
	io->buffer = buffer;
	return io->state == LATE ? send(io, UBLK_U_IO_NEED_GET_DATA, 0) : 0;
}

static int commit(struct ublk_io *io, int result)
{
	return send(io, UBLK_U_IO_COMMIT_AND_FETCH_REQ, result);
}

int ublk_complete(struct ublk_queue *queue, unsigned tag, int result)
{
	if (tag >= queue->depth || queue->ios[tag].state != OURS)
		return -EINVAL;
	return commit(&queue->ios[tag], result);
}

int ublk_complete_elsewhere(struct ublk_queue *queue, unsigned tag, int result)
{
	struct ublk_worker *worker = queue->worker;
	struct ublk_io *io = &queue->ios[tag], *first;
	uint64_t one = 1;

	if (tag >= queue->depth || atomic_exchange(&io->elsewhere, 1))
		return -EINVAL;
	io->result = result;
	first = atomic_load_explicit(&worker->elsewhere, memory_order_relaxed);
	do
		atomic_store_explicit(&io->next, first, memory_order_relaxed);
	while (!atomic_compare_exchange_weak_explicit(&worker->elsewhere, &first, io,
						      memory_order_release, memory_order_relaxed));
	/* Whoever found the list empty wakes; the worker takes all of it at once. */
	if (!first && write(worker->wake, &one, sizeof(one)) < 0)
		return -errno;
	return 0;
}

static void send_others(struct ublk_worker *worker)
{
	struct ublk_io *io =
		atomic_exchange_explicit(&worker->elsewhere, NULL, memory_order_acquire);

	while (io) {
		struct ublk_io *next = atomic_load_explicit(&io->next, memory_order_relaxed);
		int result = io->result;

		atomic_store(&io->elsewhere, 0);
		/* No room in the ring: it wakes this worker once more. */
		if (io->state == OURS && commit(io, result) < 0)
			ublk_complete_elsewhere(io->queue, io->tag, result);
		io = next;
	}
}

static void tell_io(struct ublk_queue *queue, unsigned tag, int result, struct ublk_event *event)
{
	struct ublk_io *io = &queue->ios[tag];

	*event = (struct ublk_event){
		.queue = queue, .tag = tag, .result = result, .io = &queue->descriptors[tag]};
	if (result == UBLK_IO_RES_OK) {
		io->state = OURS;
		event->kind = UBLK_REQUEST;
	} else if (result == UBLK_IO_RES_NEED_GET_DATA) {
		io->state = LATE;
		event->kind = UBLK_DATA;
	} else {
		io->state = ABORTED;
		queue->gone++;
		event->kind = UBLK_FAILED;
	}
}

/* Whether it is an event for the caller. */
static int tell(struct ublk_worker *worker, const struct io_uring_cqe *completion,
		struct ublk_event *event)
{
	unsigned kind = (unsigned)(completion->user_data >> KIND_SHIFT);
	uint64_t rest = completion->user_data & ((1ULL << KIND_SHIFT) - 1);
	struct ublk_queue *queue;

	if (kind == KIND_WAKE) {
		worker->waking = 0;
		return 0;
	}
	if (kind == KIND_USER) {
		*event = (struct ublk_event){
			.kind = UBLK_USER, .user = rest, .result = completion->res};
		return 1;
	}
	queue = worker->places[rest >> PLACE_SHIFT & PLACE_MASK].queue;
	if (!queue || queue->generation != (rest >> GENERATION_SHIFT & GENERATION_MASK))
		return 0;
	tell_io(queue, rest & 0xffff, completion->res, event);
	if (completion->res != UBLK_IO_RES_ABORT)
		return 1;
	event->kind = UBLK_GONE;
	return queue->gone == queue->depth;
}

int ublk_reap(struct ublk_worker *worker, struct ublk_event *events, unsigned max, int milliseconds)
{
	struct io_uring_cqe completion;
	unsigned found = 0;
	int error;

	send_others(worker);
	error = uring_enter(&worker->ring, milliseconds ? 1 : 0, milliseconds);
	if (error < 0 && error != -ETIME && error != -EINTR)
		return error;
	while (found < max && uring_next(&worker->ring, &completion))
		found += (unsigned)tell(worker, &completion, &events[found]);
	/* Watching comes before the look, so that no other thread's wake-up is missed. What is sent goes at
	 * once: the caller may sleep in a poll of its own next. */
	if (!worker->waking && watch_others(worker) == 0) {
		send_others(worker);
		uring_enter(&worker->ring, 0, 0);
	}
	return (int)found;
}

static off_t copy_offset(const struct ublk_queue *queue, unsigned tag, uint64_t offset)
{
	return (off_t)(UBLKSRV_IO_BUF_OFFSET + ((uint64_t)queue->number << UBLK_QID_OFF) +
		       ((uint64_t)tag << UBLK_TAG_OFF) + offset);
}

long ublk_copy_from(const struct ublk_queue *queue, unsigned tag, void *to, size_t bytes,
		    uint64_t offset)
{
	ssize_t moved = pread(queue->fd, to, bytes, copy_offset(queue, tag, offset));

	return moved < 0 ? -errno : moved;
}

long ublk_copy_to(const struct ublk_queue *queue, unsigned tag, const void *from, size_t bytes,
		  uint64_t offset)
{
	ssize_t moved = pwrite(queue->fd, from, bytes, copy_offset(queue, tag, offset));

	return moved < 0 ? -errno : moved;
}

#include "handler.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring.h"
#include "scsi.h"

#define COMPARE_AND_WRITE 0x89
#define OPEN_TRIES 200
#define OPEN_MS 10

struct tcmu_handler {
	struct tcmu_device device;
	struct scsi_lun lun;
	struct tcmu_ring ring;
	struct tcmu_note *note;
	int uio, stop; /* an eventfd */
	void *region;
	pthread_mutex_t lock; /* of the ring and all below */
	pthread_cond_t more, answered;
	int watching; /* a thread waits for the kernel */
	int ended, broken;
	/* The one COMPARE AND WRITE that is carried out and not answered; whose turn is next. */
	const struct tcmu_command *comparing;
	unsigned turns, turn;
	unsigned thread_count;
	pthread_t threads[64];
};

static int complain(const struct tcmu_device *device, const char *what, int error)
{
	fprintf(stderr, "sealsvc-tcmu: %s (uio%d): %s: %s\n", device->name, device->minor, what,
		strerror(-error));
	return error;
}

static void wait_for_kernel(struct tcmu_handler *handler)
{
	struct pollfd wanted[] = {{.fd = handler->uio, .events = POLLIN},
				  {.fd = handler->stop, .events = POLLIN}};
	uint32_t events;

	handler->watching = 1;
	pthread_mutex_unlock(&handler->lock);
	poll(wanted, 2, -1);
	if (wanted[0].revents & POLLIN)
		(void)!read(handler->uio, &events, sizeof(events));
	pthread_mutex_lock(&handler->lock);
	handler->watching = 0;
	if (wanted[1].revents || wanted[0].revents & (POLLERR | POLLHUP | POLLNVAL))
		handler->ended = 1; /* told to, or the device is gone */
}

/* The next command to carry out, with the lock held; NULL when the handler has ended. */
static struct tcmu_command *next(struct tcmu_handler *handler)
{
	struct tcmu_command *command;

	while (!handler->ended) {
		int found = tcmu_ring_next(&handler->ring, &command);

		if (found > 0)
			return command;
		if (found < 0) {
			handler->ended = handler->broken = 1;
			complain(&handler->device, "the ring is broken; it is served no longer",
				 found);
		} else if (!handler->watching) {
			wait_for_kernel(handler);
		} else {
			pthread_cond_wait(&handler->more, &handler->lock);
		}
	}
	pthread_cond_broadcast(&handler->more);
	return NULL;
}

static void refuse(struct scsi_task *task)
{
	task->moved = 0;
	scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

static void carry_out(struct tcmu_handler *handler, struct tcmu_command *command)
{
	struct scsi_task task = {.lun = &handler->lun,
				 .cdb = command->cdb,
				 .iov = command->iov,
				 .iov_count = command->iov_count,
				 .bytes = command->bytes,
				 .id = command->id};

	if (command->bidi || command->crowded)
		refuse(&task);
	else
		scsi_run(&task);
	command->status = task.status;
	memcpy(command->sense, task.sense, sizeof(task.sense));
	command->read_len = task.moved;
}

/* The note has room for one: until it is answered the next waits. They go in the ring's order, since an answer
 * may have to wait for those before it. */
static void take_turn(struct tcmu_handler *handler, const struct tcmu_command *command)
{
	unsigned mine = handler->turns++;

	while (handler->comparing || handler->turn != mine)
		pthread_cond_wait(&handler->answered, &handler->lock);
	handler->comparing = command;
	handler->turn++;
}

static void end_turn(struct tcmu_handler *handler)
{
	if (!handler->comparing || handler->comparing->state != TCMU_FREE)
		return;
	handler->comparing = NULL;
	if (handler->note)
		__atomic_store_n(&handler->note->write_state, SCSI_WRITE_NONE, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&handler->answered);
}

static void *serve(void *context)
{
	struct tcmu_handler *handler = context;
	struct tcmu_command *command;
	int32_t nothing = 0;
	int moved;

	pthread_mutex_lock(&handler->lock);
	while ((command = next(handler))) {
		/* Another thread takes the next command, or waits for it. */
		pthread_cond_signal(&handler->more);
		if (command->cdb[0] == COMPARE_AND_WRITE)
			take_turn(handler, command);
		pthread_mutex_unlock(&handler->lock);
		carry_out(handler, command);
		pthread_mutex_lock(&handler->lock);
		moved = tcmu_ring_done(&handler->ring, command);
		end_turn(handler);
		if (moved) {
			pthread_mutex_unlock(&handler->lock);
			(void)!write(handler->uio, &nothing, sizeof(nothing));
			pthread_mutex_lock(&handler->lock);
		}
	}
	pthread_mutex_unlock(&handler->lock);
	return NULL;
}

static void map_note(struct tcmu_handler *handler, const char *directory)
{
	char path[2 * TCMU_NAME];
	void *note;
	int fd;

	snprintf(path, sizeof(path), "%s/%u.%s", directory, handler->device.hba,
		 handler->device.name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	note = fd >= 0 && ftruncate(fd, sizeof(*handler->note)) == 0
		       ? mmap(NULL, sizeof(*handler->note), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_POPULATE, fd, 0)
		       : MAP_FAILED;
	if (note == MAP_FAILED)
		complain(&handler->device, "no note is kept, so answers go in order", -errno);
	else
		handler->note = note;
	if (fd >= 0)
		close(fd);
}

static int open_region(struct tcmu_handler *handler, const char *notes)
{
	struct tcmu_device *device = &handler->device;
	char path[32];
	int error;

	snprintf(path, sizeof(path), "/dev/uio%d", device->minor);
	/* One process may have it open: a moment ago that was one which was killed. */
	for (int tries = 0; tries < OPEN_TRIES; tries++) {
		handler->uio = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
		if (handler->uio >= 0 || errno != EBUSY)
			break;
		poll(NULL, 0, OPEN_MS);
	}
	if (handler->uio < 0)
		return complain(device, path, -errno);
	handler->region =
		mmap(NULL, device->map_size, PROT_READ | PROT_WRITE, MAP_SHARED, handler->uio, 0);
	if (handler->region == MAP_FAILED)
		return complain(device, "mapping it", -errno);
	if (notes)
		map_note(handler, notes);
	error = tcmu_ring_open(&handler->ring, handler->region, device->map_size, handler->note);
	if (error)
		return complain(device, "its mailbox", error);
	if (handler->note) {
		handler->lun.write_state = &handler->note->write_state;
		handler->lun.write_id = &handler->note->write_id;
		if (!tcmu_ring_has(&handler->ring, (uint16_t)handler->note->write_id,
				   COMPARE_AND_WRITE))
			handler->note->write_state = SCSI_WRITE_NONE;
	}
	return 0;
}

static int open_lun(struct tcmu_handler *handler, const struct tcmu_plugin *plugin)
{
	const struct tcmu_device *device = &handler->device;
	struct scsi_lun *lun = &handler->lun;
	int error;

	lun->plugin = plugin;
	lun->medium.block_size = (unsigned)tcmu_attribute(device, "hw_block_size", 512);
	error = plugin->open(device->path, &lun->medium, &lun->context);
	if (error) {
		lun->plugin = NULL;
		return complain(device, device->path, error);
	}
	lun->write_cache = lun->medium.write_cache;
	tcmu_serial(device, lun->serial, sizeof(lun->serial));
	return 0;
}

static void release(struct tcmu_handler *handler)
{
	scsi_leave(&handler->lun);
	if (handler->lun.plugin)
		handler->lun.plugin->close(handler->lun.context);
	if (handler->note)
		munmap(handler->note, sizeof(*handler->note));
	if (handler->region && handler->region != MAP_FAILED)
		munmap(handler->region, handler->device.map_size);
	if (handler->uio >= 0)
		close(handler->uio);
	if (handler->stop >= 0)
		close(handler->stop);
	pthread_cond_destroy(&handler->answered);
	pthread_cond_destroy(&handler->more);
	pthread_rwlock_destroy(&handler->lun.order);
	pthread_mutex_destroy(&handler->lock);
	free(handler);
}

int tcmu_handler_start(const struct tcmu_device *device, const struct tcmu_plugin *plugin,
		       const char *notes, unsigned threads, struct tcmu_handler **handler)
{
	struct tcmu_handler *made = calloc(1, sizeof(*made));
	int32_t nothing = 0;
	int error;

	if (!made)
		return -ENOMEM;
	made->device = *device;
	made->uio = -1;
	pthread_mutex_init(&made->lock, NULL);
	pthread_rwlock_init(&made->lun.order, NULL);
	pthread_cond_init(&made->more, NULL);
	pthread_cond_init(&made->answered, NULL);
	made->stop = eventfd(0, EFD_CLOEXEC);
	error = made->stop < 0 ? -errno : open_lun(made, plugin);
	if (!error)
		error = open_region(made, notes);
	/* What a process that died had answered may not have been told. */
	if (!error && write(made->uio, &nothing, sizeof(nothing)) < 0)
		error = complain(device, "telling the kernel", -errno);
	if (!error)
		scsi_join(&made->lun);
	for (; !error && made->thread_count < threads && made->thread_count < 64;
	     made->thread_count++)
		error = -pthread_create(&made->threads[made->thread_count], NULL, serve, made);
	if (error && made->thread_count) {
		tcmu_handler_stop(made);
		return error;
	}
	if (error) {
		release(made);
		return error;
	}
	*handler = made;
	return 0;
}

void tcmu_handler_stop(struct tcmu_handler *handler)
{
	uint64_t one = 1;

	(void)!write(handler->stop, &one, sizeof(one));
	if (handler->lun.plugin->stop)
		handler->lun.plugin->stop(handler->lun.context);
	for (unsigned i = 0; i < handler->thread_count; i++)
		pthread_join(handler->threads[i], NULL);
	release(handler);
}

const struct tcmu_device *tcmu_handler_device(const struct tcmu_handler *handler)
{
	return &handler->device;
}

#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "internal.h"
#include "memory.h"

#define DEFAULT_GRACE 10.0
#define DEFAULT_ALIGN 4096
#define SECTOR 512

static int why_not(char *why, size_t room, int error, const char *what, const char *on)
{
	snprintf(why, room, "%s%s%s: %s", what, on ? " " : "", on ? on : "", strerror(-error));
	return error;
}

static int copy_strings(struct export_target *target)
{
	const char **all[] = {&target->options.name,   &target->options.path,
			      &target->options.socket, &target->options.kind,
			      &target->options.fence,  &target->options.prepare};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (!*all[i])
			continue;
		*all[i] = target->strings[i] = strdup(*all[i]);
		if (!target->strings[i])
			return -ENOMEM;
	}
	return 0;
}

static int take_options(struct export_target *target, const struct export_options *given)
{
	size_t size = given->size;

	memcpy(&target->options, given, size < sizeof(*given) ? size : sizeof(*given));
	if (!target->options.path || !target->options.name)
		return -EINVAL;
	if (!target->options.kind)
		target->options.kind = "exclusive";
	if (!target->options.fence)
		target->options.fence = "kill";
	if (!target->options.prepare)
		target->options.prepare =
			target->options.read_only ? "[]" : "[\"allocate\",\"convert\"]";
	if (target->options.grace <= 0)
		target->options.grace = DEFAULT_GRACE;
	return copy_strings(target);
}

static int open_stats(struct export_target *target)
{
	const char *path = target->options.stats;
	int fd = -1, error = 0;
	void *memory;

	if (path) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
		if (fd < 0 || ftruncate(fd, sizeof(*target->stats)))
			error = -errno;
	}
	memory = error ? MAP_FAILED
		       : mmap(NULL, sizeof(*target->stats), PROT_READ | PROT_WRITE,
			      fd < 0 ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED && !error)
		error = -errno;
	if (fd >= 0)
		close(fd);
	if (error)
		return error;
	target->stats = memory;
	memset(memory, 0, sizeof(*target->stats));
	target->stats->size = sizeof(*target->stats);
	target->stats->pid = (uint32_t)getpid();
	target->stats->magic = EXPORT_STATS_MAGIC;
	return 0;
}

static int open_file(struct export_target *target)
{
	const struct export_options *options = &target->options;
	int mode = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK;
	struct statx found;

	target->fd = open(options->path, mode);
	if (target->fd < 0)
		return -errno;
	if (statx(target->fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_DIOALIGN, &found))
		return -errno;
	if (!S_ISREG(found.stx_mode))
		return -EINVAL;
	target->dax = (found.stx_attributes & STATX_ATTR_DAX) != 0;
	target->mapped_io =
		options->io == EXPORT_IO_MAPPED || (options->io == EXPORT_IO_AUTO && target->dax);
	target->zeroes_fast = (uint32_t)target->mapped_io;
	target->align = DEFAULT_ALIGN;
	if (found.stx_mask & STATX_DIOALIGN && found.stx_dio_offset_align >= SECTOR &&
	    found.stx_dio_offset_align < DEFAULT_ALIGN)
		target->align = found.stx_dio_offset_align;
	/* A device has whole sectors; a file's last piece of one is not exported. */
	target->size = found.stx_size & ~(uint64_t)(SECTOR - 1);
	if (!target->size)
		return -ENODATA;
	if (!target->mapped_io && fcntl(target->fd, F_SETFL, O_DIRECT))
		return -errno;
	return 0;
}

static void forget(struct export_target *target)
{
	if (target->client)
		seal_close(target->client);
	if (target->fd >= 0)
		close(target->fd);
	if (target->wake >= 0)
		close(target->wake);
	if (target->stats) {
		target->stats->state = EXPORT_ENDED;
		gate_destroy(&target->gate);
		pthread_rwlock_destroy(&target->order);
		pthread_mutex_destroy(&target->turn);
		munmap(target->stats, sizeof(*target->stats));
	}
	for (size_t i = 0; i < sizeof(target->strings) / sizeof(target->strings[0]); i++)
		free(target->strings[i]);
	free(target->why);
	free(target);
}

static int prepare(struct export_target *target)
{
	int error = memory_init();

	if (!error)
		error = open_stats(target);
	if (error)
		return error;
	error = gate_init(&target->gate, &target->stats->in_flight);
	if (!error)
		error = -pthread_rwlock_init(&target->order, NULL);
	if (!error)
		error = -pthread_mutex_init(&target->turn, NULL);
	target->why = calloc(1, EXPORT_ERROR_ROOM);
	target->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!error && (!target->why || target->wake < 0))
		error = -ENOMEM;
	return error;
}

int export_open(struct export_target **out, const struct export_options *options, char *why,
		size_t room)
{
	struct export_target *target = calloc(1, sizeof(*target));
	int error;

	if (!target)
		return why_not(why, room, -ENOMEM, "a target", NULL);
	target->fd = target->wake = target->file = -1;
	error = take_options(target, options);
	if (error)
		why_not(why, room, error, "the options: name and path are needed", NULL);
	if (!error && (error = prepare(target)))
		why_not(why, room, error, "preparing, with statistics in", target->options.stats);
	if (!error && (error = open_file(target)))
		why_not(why, room, error, "opening", target->options.path);
	if (!error && ((error = target_connect(target)) || (error = target_acquire(target))))
		snprintf(why, room, "%s", target->why);
	if (error) {
		forget(target);
		return error;
	}
	target->stats->device_size = target->size;
	target->stats->state = EXPORT_SERVING;
	*out = target;
	return 0;
}

int export_start(struct export_target *target)
{
	/* Serving must not wait for memory that is written back through what is served. */
	if (!geteuid() && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		target_say(target, LOG_WARNING, "memory is not locked: %s", strerror(errno));
	if (target->mapping)
		munlock(target->mapping, target->size);
	return recall_start(target);
}

void export_shutdown(struct export_target *target)
{
	gate_end(&target->gate);
}

void export_close(struct export_target *target)
{
	export_shutdown(target);
	recall_stop(target);
	gate_close(&target->gate);
	pthread_mutex_lock(&target->turn);
	if (target->client && target_release(target))
		target_say(target, LOG_WARNING, "the seal ends with this process: %s", target->why);
	pthread_mutex_unlock(&target->turn);
	forget(target);
}

uint64_t export_size(const struct export_target *target)
{
	return target->size;
}

uint32_t export_block(const struct export_target *target)
{
	return target->mapped_io ? SECTOR : target->align;
}

int export_is_dax(const struct export_target *target)
{
	return target->dax;
}

int export_is_read_only(const struct export_target *target)
{
	return target->options.read_only;
}

int export_zeroes_fast(const struct export_target *target)
{
	return (int)target->zeroes_fast;
}

int export_discards(const struct export_target *target)
{
	return target->options.discard == EXPORT_DISCARD_RECALL && !target->options.read_only;
}

struct export_stats *export_stats(struct export_target *target)
{
	return target->stats;
}

int export_fd(const struct export_target *target)
{
	return target->fd;
}

int export_valid(const struct export_target *target)
{
	return seal_valid(&target->seal);
}

void export_pause(struct export_target *target)
{
	pthread_mutex_lock(&target->turn);
	recall_pause_begins(target, "paused by hand");
	pthread_mutex_unlock(&target->turn);
}

void export_resume(struct export_target *target)
{
	pthread_mutex_lock(&target->turn);
	recall_pause_ends(target);
	pthread_mutex_unlock(&target->turn);
}

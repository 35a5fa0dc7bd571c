/* Taking the seal and the mapping, and giving both back. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "internal.h"
#include "media.h"
#include "seal_ring.h"

#ifndef MAP_SYNC
#define MAP_SYNC 0x80000
#endif

#define MAPS 10 /* tries */
#define ASK_NS UINT64_C(30000000000)
#define MAX_GRACE 1e9 /* seconds; the service's own limit is lower */

void target_say(struct export_target *target, int level, const char *format, ...)
{
	char text[EXPORT_ERROR_ROOM];
	va_list list;

	if (!target->options.log)
		return;
	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	target->options.log(target->options.context, level, text);
}

static int because(struct export_target *target, int error, const char *what)
{
	snprintf(target->why, EXPORT_ERROR_ROOM, "%s: %s", what, strerror(-error));
	return error;
}

static void news(struct seal_client *client, const struct seal_news *what, void *context)
{
	struct export_target *target = context;
	uint32_t state = seal_word_state(what->word);

	(void)client;
	switch (what->kind) {
	case SEAL_EVENT_FILE:
		/* The registration. A recall that was satisfied without us is none. */
		if (state != SEAL_GRANTED && state != SEAL_ACTIVE &&
		    (int)what->file == target->file)
			target->recalled = 1;
		break;
	case SEAL_EVENT_RECALL:
	case SEAL_EVENT_DEADLINE:
	case SEAL_EVENT_LOST:
	case SEAL_EVENT_OVER:
		/* Not what was said of an earlier seal in this slot. */
		if (target->held && what->number == target->seal.number &&
		    seal_word_generation(what->word) == seal_word_generation(target->seal.word))
			target->recalled = 1;
		break;
	default:
		/* SEAL_EVENT_ANY asks for seals that can be spared: the only one cannot. */
		break;
	}
}

int target_connect(struct export_target *target)
{
	struct seal_options options = {
		.size = sizeof(options),
		.socket = target->options.socket,
		.slots = 1,
		.timeout = ASK_NS,
		.news = news,
		.context = target,
	};
	int error;

	if (target->client)
		seal_close(target->client);
	target->client = NULL;
	target->file = -1;
	target->held = 0;
	error = seal_open(&target->client, &options);
	if (error)
		snprintf(target->why, EXPORT_ERROR_ROOM, "%s", seal_failure(NULL));
	return error;
}

static int map(struct export_target *target)
{
	int access = PROT_READ | (target->options.read_only ? 0 : PROT_WRITE);
	void *mapping = MAP_FAILED;

	if (!target->mapped_io)
		return 0;
	/* MAP_SYNC: a store is durable once it has left the caches (Documentation/filesystems/dax.rst). */
	for (unsigned int n = 0; n < MAPS; n++) {
		mapping = mmap(NULL, target->size, access,
			       target->dax ? MAP_SHARED_VALIDATE | MAP_SYNC : MAP_SHARED,
			       target->fd, 0);
		if (mapping != MAP_FAILED || !media_is_refused(-errno))
			break;
		media_rest(n);
	}
	if (mapping == MAP_FAILED)
		return because(target, -errno, "mapping the file");
	/* Not what mlockall() means. */
	munlock(mapping, target->size);
	target->mapping = mapping;
	return 0;
}

/* 1 and up: which of the words it is; 0: none of them. */
static uint32_t word(const char *text, size_t length, const char *const *words, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		if (strlen(words[i]) == length && !strncmp(text, words[i], length))
			return i + 1;
	return 0;
}

/* The set of a JSON list of words. -EINVAL: one is unknown. */
static int read_preparations(const char *list, uint32_t *out)
{
	static const char *const words[] = {"allocate", "convert", "unshare", "align"};

	*out = 0;
	for (list += strspn(list, "[]\", "); *list; list += strspn(list, "[]\", ")) {
		size_t length = strcspn(list, "[]\", ");
		uint32_t found = word(list, length, words, 4);

		if (!found)
			return -EINVAL;
		*out |= 1u << (found - 1);
		list += length;
	}
	return 0;
}

static int register_file(struct export_target *target)
{
	static const char *const kinds[] = {"shared", "exclusive"};
	static const char *const fences[] = {"none", "signal", "kill"};
	const struct export_options *given = &target->options;
	struct seal_file_options options = {
		.size = sizeof(options),
		.length = target->size,
		.grace = (uint64_t)((given->grace < MAX_GRACE ? given->grace : MAX_GRACE) * 1e9),
		.iomode = given->read_only ? SEAL_READ : SEAL_RW,
		.kind = word(given->kind, strlen(given->kind), kinds, 2),
		.conflict = SEAL_CONFLICT_WAIT,
		.fence = word(given->fence, strlen(given->fence), fences, 3),
		.tag = given->name,
	};
	int file;

	if (!options.kind || !options.fence || read_preparations(given->prepare, &options.prepare))
		return because(target, -EINVAL, "one of kind, fence and prepare");
	file = seal_register(target->client, target->fd, &options);
	if (file < 0)
		snprintf(target->why, EXPORT_ERROR_ROOM, "%s", seal_failure(target->client));
	return file;
}

static void tell_seal(struct export_target *target)
{
	char id[sizeof(target->stats->seal)] = "", secret[17];
	uint32_t ring;

	if (!seal_identity(target->client, &ring, secret))
		snprintf(id, sizeof(id), "%08x%016llx", ring,
			 (unsigned long long)target->seal.slot->id);
	memcpy(target->stats->seal, id, sizeof(id));
	__atomic_fetch_add(&target->stats->seals, 1, __ATOMIC_RELAXED);
}

int target_acquire(struct export_target *target)
{
	struct stat status;
	int error;

	if (fstat(target->fd, &status))
		return because(target, -errno, "looking at the file");
	if ((uint64_t)status.st_size < target->size) {
		snprintf(target->why, EXPORT_ERROR_ROOM,
			 "the file is shorter (%llu bytes) than the device (%llu): make it as long "
			 "again",
			 (unsigned long long)status.st_size, (unsigned long long)target->size);
		return -ENOSPC;
	}
	/* What is still to be told is about the seal before. */
	seal_dispatch(target->client);
	target->recalled = 0;
	target->file = register_file(target);
	if (target->file < 0)
		return target->file;
	error = seal_grant(target->client, target->file, 0, target->size,
			   target->options.read_only ? SEAL_READ : SEAL_RW, &target->seal);
	if (error) {
		because(target, error, "sealing the file");
	} else {
		target->held = 1;
		error = map(target);
	}
	if (error)
		target_release(target);
	else
		tell_seal(target);
	return error;
}

/* A command that found nothing left to be done. */
static int is_over(int error)
{
	return !error || error == -ENOENT || error == -ESTALE || error == -EPIPE;
}

void target_unmap(struct export_target *target)
{
	if (target->mapping)
		munmap(target->mapping, target->size);
	target->mapping = NULL;
}

int target_release(struct export_target *target)
{
	int error;

	target_unmap(target);
	target->stats->seal[0] = 0;
	if (target->held && !seal_refresh(target->client, &target->seal)) {
		error = seal_return(target->client, &target->seal);
		if (!is_over(error))
			return because(target, error, "returning the seal");
	}
	target->held = 0;
	/* It takes every seal that is left in it with it. */
	if (target->file >= 0) {
		error = seal_unregister(target->client, target->file);
		if (!is_over(error))
			return because(target, error, "ending the registration of the file");
	}
	target->file = -1;
	return 0;
}

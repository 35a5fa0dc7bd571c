/* nbdkit-sealsvc-plugin: a sealed file as an NBD export, by the target core. One seal for the whole
 * server: NBD clients open and close an export several times for one use of it. */
#define NBDKIT_API_VERSION 2
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include <nbdkit-plugin.h>

#include "environment.h"
#include "target.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define BEST_BLOCK 4096
#define LONGEST_REQUEST (32u << 20) /* what NBD clients take for granted (proto.md, block sizes) */
#define A_DAY 86400

static struct export_options options = {.size = sizeof(options)};
static struct export_target *target;
static char environment_failure[EXPORT_ERROR_ROOM];
static pthread_t watcher;
static int watching;

static void say(void *context, int level, const char *text)
{
	(void)context;
	if (level <= LOG_WARNING)
		nbdkit_error("%s", text);
	else
		nbdkit_debug("%s", text);
}

static void plugin_load(void)
{
	options.log = say;
	export_options_from_environment(&options, environment_failure, sizeof(environment_failure));
}

static int plugin_config(const char *key, const char *value)
{
	char *path;

	if (!strcmp(key, "file")) {
		path = nbdkit_realpath(value);
		if (!path)
			return -1;
		options.path = path; /* for as long as the server runs */
		return 0;
	}
	if (export_option(&options, key, value)) {
		nbdkit_error("%s=%s is not understood: see nbdkit-sealsvc-plugin(1)", key, value);
		return -1;
	}
	return 0;
}

static int plugin_config_complete(void)
{
	if (environment_failure[0]) {
		nbdkit_error("%s", environment_failure);
		return -1;
	}
	if (!options.path) {
		nbdkit_error("the file to export is missing: file=PATH");
		return -1;
	}
	if (!options.name)
		options.name = "nbd";
	return 0;
}

/* Requests that wait at the gate keep their connections open, and the server waits for those. */
static void *watch_shutdown(void *context)
{
	(void)context;
	while (!nbdkit_nanosleep(A_DAY, 0))
		;
	export_shutdown(target);
	return NULL;
}

/* A supervisor (sealsvc/exports/standby.py) may have us wait with everything loaded until we are needed. It closes
 * its end when we are not, or has died. */
static int wait_for_start(void)
{
	const char *text = getenv("SEALSVC_EXPORT_START");
	char byte;
	ssize_t n;
	int fd;

	if (!text)
		return 0;
	fd = atoi(text);
	do
		n = read(fd, &byte, 1);
	while (n < 0 && errno == EINTR);
	close(fd);
	return n == 1 ? 0 : -1;
}

static int plugin_after_fork(void)
{
	char why[EXPORT_ERROR_ROOM] = "";
	int error;

	if (wait_for_start())
		return -1;
	/* Not before: what a process holds its children do not. */
	error = export_open(&target, &options, why, sizeof(why));
	if (error) {
		nbdkit_error("%s: %s", options.path, why);
		return -1;
	}
	error = export_start(target);
	if (!error)
		error = -pthread_create(&watcher, NULL, watch_shutdown, NULL);
	watching = !error;
	if (error)
		nbdkit_error("starting: %s", strerror(-error));
	return error ? -1 : 0;
}

static void plugin_cleanup(void)
{
	if (watching)
		pthread_join(watcher, NULL);
	if (target)
		export_close(target);
	target = NULL;
}

static void *plugin_open(int read_only)
{
	(void)read_only;
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t plugin_get_size(void *handle)
{
	(void)handle;
	return (int64_t)export_size(target);
}

static int plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
			     uint32_t *maximum)
{
	(void)handle;
	*minimum = 1;
	*preferred = export_block(target) > BEST_BLOCK ? export_block(target) : BEST_BLOCK;
	*maximum = LONGEST_REQUEST;
	return 0;
}

static int yes(void *handle)
{
	(void)handle;
	return 1;
}

static int plugin_can_write(void *handle)
{
	(void)handle;
	return !export_is_read_only(target);
}

static int plugin_can_trim(void *handle)
{
	(void)handle;
	return export_discards(target);
}

static int plugin_can_fua(void *handle)
{
	(void)handle;
	return NBDKIT_FUA_NATIVE;
}

static unsigned int flags_of(uint32_t flags)
{
	return (flags & NBDKIT_FLAG_FUA ? EXPORT_FUA : 0) |
	       (flags & NBDKIT_FLAG_FAST_ZERO ? EXPORT_FAST : 0);
}

/* What NBD has no word for is EINVAL to nbdkit (server/protocol.c, nbd_errno), which blames the client. */
static int word_for(int error)
{
	switch (error) {
	case EPERM:
	case EROFS:
	case EIO:
	case ENOMEM:
	case EINVAL:
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
	case EOPNOTSUPP:
	case EOVERFLOW:
	case ESHUTDOWN:
		return error;
	}
	nbdkit_error("a request failed, and is answered with EIO: %s (%d)", strerror(error), error);
	return EIO;
}

static int answer(int error)
{
	if (!error)
		return 0;
	nbdkit_set_error(word_for(-error));
	return -1;
}

static int plugin_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags)
{
	(void)handle;
	return answer(export_read(target, buffer, count, offset, flags_of(flags)));
}

static int plugin_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset,
			 uint32_t flags)
{
	(void)handle;
	return answer(export_write(target, buffer, count, offset, flags_of(flags)));
}

static int plugin_flush(void *handle, uint32_t flags)
{
	(void)handle;
	(void)flags;
	return answer(export_flush(target, 0));
}

static int plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	(void)handle;
	return answer(export_zero(target, count, offset, flags_of(flags)));
}

static int plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	int error;

	(void)handle;
	error = export_discard(target, count, offset, 0);
	if (!error && flags & NBDKIT_FLAG_FUA)
		error = export_flush(target, 0);
	return answer(error);
}

static int plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
			  struct nbdkit_extents *extents)
{
	(void)handle;
	(void)flags;
	/* A seal is granted on nothing but written extents, and while it stands nobody makes others. */
	return nbdkit_add_extent(extents, offset, count, 0);
}

static struct nbdkit_plugin plugin = {
	.name = "sealsvc",
	.longname = "sealed file",
	.version = "1",
	.description = "serve a file whose extents are sealed; a recall is a pause",
	.load = plugin_load,
	.config = plugin_config,
	.config_complete = plugin_config_complete,
	.config_help = "file=PATH   (required) the file to serve\n"
		       "name=NAME, kind=exclusive|shared, fence=none|signal|kill, prepare=JSON,\n"
		       "grace=SECONDS, patience=SECONDS, read_only=0|1, io=auto|mapped|direct,\n"
		       "discard=refuse|recall, stats=PATH, socket=PATH: see the manual page",
	.magic_config_key = "file",
	.after_fork = plugin_after_fork,
	.cleanup = plugin_cleanup,
	.open = plugin_open,
	.get_size = plugin_get_size,
	.block_size = plugin_block_size,
	.can_write = plugin_can_write,
	.can_flush = yes,
	.can_multi_conn = yes,
	.can_zero = plugin_can_write,
	.can_fast_zero = plugin_can_write,
	.can_trim = plugin_can_trim,
	.can_fua = plugin_can_fua,
	.can_extents = yes,
	.pread = plugin_pread,
	.pwrite = plugin_pwrite,
	.flush = plugin_flush,
	.zero = plugin_zero,
	.trim = plugin_trim,
	.extents = plugin_extents,
	.errno_is_preserved = 0,
};

NBDKIT_REGISTER_PLUGIN(plugin)

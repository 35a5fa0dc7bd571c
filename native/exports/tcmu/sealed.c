/* subtype "sealed": the file PATH under a seal, by the target core (../core/target.h). A recall is a pause. The
 * environment SEALSVC_EXPORT_* may say how it is sealed, as `sealctl export` does. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <syslog.h>

#include "environment.h"
#include "plugin.h"
#include "target.h"

static void say(void *context, int level, const char *text)
{
	(void)context;
	if (level <= LOG_WARNING)
		fprintf(stderr, "sealsvc-tcmu: %s\n", text);
}

static int sealed_open(const char *path, struct tcmu_medium *medium, void **context)
{
	struct export_options options = {.size = sizeof(options), .log = say};
	struct export_target *target = NULL;
	char why[EXPORT_ERROR_ROOM] = "";
	int error = export_options_from_environment(&options, why, sizeof(why));

	if (!options.path)
		options.path = path;
	if (!options.name)
		options.name = "tcmu";
	if (!error)
		error = export_open(&target, &options, why, sizeof(why));
	if (!error)
		error = export_start(target);
	if (!error && export_size(target) < medium->block_size)
		error = -EINVAL;
	if (error) {
		fprintf(stderr, "sealsvc-tcmu: %s: %s\n", options.path, why);
		if (target)
			export_close(target);
		return error;
	}
	medium->size = export_size(target) / medium->block_size * medium->block_size;
	if (export_block(target) > medium->block_size)
		medium->physical_block_size = export_block(target);
	medium->read_only = export_is_read_only(target);
	medium->write_cache = 1;
	medium->discard_granularity = export_discards(target) ? export_block(target) : 0;
	*context = target;
	return 0;
}

static void sealed_close(void *context)
{
	export_close(context);
}

static void sealed_stop(void *context)
{
	export_flush(context, EXPORT_NOWAIT); /* nobody may be left who asks for it */
	export_shutdown(context);
}

static int sealed_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	return export_read(context, buffer, length, offset, 0);
}

static int sealed_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	return export_write(context, buffer, length, offset, 0);
}

static int sealed_flush(void *context)
{
	return export_flush(context, 0);
}

static int sealed_discard(void *context, uint64_t length, uint64_t offset)
{
	return export_discard(context, length, offset, 0);
}

static int sealed_zero(void *context, uint64_t length, uint64_t offset)
{
	return export_zero(context, length, offset, 0);
}

/* No `copy`: copy_file_range(2) would share blocks, or write others than the sealed ones, where the file system
 * can; what is read and written stays where it is. */
const struct tcmu_plugin tcmu_sealed = {
	.subtype = "sealed",
	.about = "PATH: a file under a seal; recalls are pauses",
	.open = sealed_open,
	.close = sealed_close,
	.stop = sealed_stop,
	.read = sealed_read,
	.write = sealed_write,
	.flush = sealed_flush,
	.discard = sealed_discard,
	.zero = sealed_zero,
};

/* subtype "null": a disk of PATH bytes that forgets what is written and reads as zeros. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

static int null_open(const char *path, struct tcmu_medium *medium, void **context)
{
	*context = NULL;
	medium->size = strtoull(path, NULL, 0) / medium->block_size * medium->block_size;
	return medium->size ? 0 : -EINVAL;
}

static void null_close(void *context)
{
	(void)context;
}

static int null_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	(void)context, (void)offset;
	memset(buffer, 0, length);
	return 0;
}

static int null_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	(void)context, (void)buffer, (void)length, (void)offset;
	return 0;
}

static int null_flush(void *context)
{
	(void)context;
	return 0;
}

const struct tcmu_plugin tcmu_null = {
	.subtype = "null",
	.about = "SIZE: reads as zeros, forgets what is written",
	.open = null_open,
	.close = null_close,
	.read = null_read,
	.write = null_write,
	.flush = null_flush,
};

/* A disk whose medium is memory, and commands to it. Each test program has its own. */
#ifndef SEALSVC_TCMU_TESTS_DISK_H
#define SEALSVC_TCMU_TESTS_DISK_H

#include <string.h>

#include "../../../tests/check.h"
#include "../scsi.h"

#define BLOCK 512u
#define BLOCKS 4096u

static uint8_t medium[BLOCK * BLOCKS], data[1 << 20];
static unsigned flushes, discards;
static int failure;

static int ram_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	(void)context;
	memcpy(buffer, medium + offset, length);
	return failure;
}

static int ram_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	(void)context;
	if (!failure)
		memcpy(medium + offset, buffer, length);
	return failure;
}

static int ram_flush(void *context)
{
	(void)context;
	flushes++;
	return 0;
}

static int ram_discard(void *context, uint64_t length, uint64_t offset)
{
	(void)context, (void)length, (void)offset;
	discards++;
	return 0;
}

static const struct tcmu_plugin ram = {
	.read = ram_read, .write = ram_write, .flush = ram_flush, .discard = ram_discard};
static struct scsi_lun lun = {.plugin = &ram,
			      .medium = {.size = sizeof(medium),
					 .block_size = BLOCK,
					 .physical_block_size = 4096,
					 .discard_granularity = BLOCK,
					 .write_cache = 1},
			      .serial = "0123-serial",
			      .write_cache = 1,
			      .order = PTHREAD_RWLOCK_INITIALIZER};
static struct scsi_task task;

/* The data is in two parts, whose border is not a block's. */
static void run(const uint8_t *cdb, size_t bytes)
{
	static struct iovec iov[2];
	size_t first = bytes > 1000 ? 1000 : bytes / 2;

	iov[0] = (struct iovec){data, first};
	iov[1] = (struct iovec){data + first, bytes - first};
	task = (struct scsi_task){
		.lun = &lun, .cdb = cdb, .iov = iov, .iov_count = 2, .bytes = bytes, .id = 7};
	scsi_run(&task);
}

#define RUN(bytes, ...) run((const uint8_t[16]){__VA_ARGS__}, (bytes))

static void good(void)
{
	CHECK(task.status == SCSI_GOOD);
}

static void refused(unsigned key, unsigned code)
{
	CHECK(task.status == SCSI_CHECK_CONDITION && task.moved == 0);
	CHECK((task.sense[0] & 0x7f) == 0x70 && task.sense[2] == key);
	CHECK(scsi_get(task.sense + 12, 2) == code);
}

#endif

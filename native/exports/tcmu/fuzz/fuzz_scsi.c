/* Any CDB with any data in any parts, to a disk in memory: it touches nothing but both, the disk alone for
 * commands that write, and ends with a status and sense that fit together. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../scsi.h"

#define BLOCK 512u
#define BLOCKS 64u
#define HEADER 20

static uint8_t *medium;
static int written;

static void check_range(uint64_t length, uint64_t offset)
{
	if (offset > BLOCK * BLOCKS || length > BLOCK * BLOCKS - offset || length % BLOCK ||
	    offset % BLOCK)
		__builtin_trap();
}

static int ram_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	check_range(length, offset);
	memcpy(buffer, medium + offset, length);
	return *(int *)context;
}

static int ram_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	check_range(length, offset);
	memcpy(medium + offset, buffer, length);
	written = 1;
	return *(int *)context;
}

static int ram_change(void *context, uint64_t length, uint64_t offset)
{
	check_range(length, offset);
	written = 1;
	return *(int *)context;
}

static int ram_flush(void *context)
{
	return *(int *)context;
}

/* A part of it, as of the whole length; the rest is read and written. */
static int ram_copy(void *from, uint64_t from_offset, void *to, uint64_t to_offset, uint64_t length,
		    uint64_t *done)
{
	(void)to;
	check_range(length, from_offset);
	check_range(length, to_offset);
	*done = length / BLOCK / 2 * BLOCK;
	memcpy(medium + to_offset, medium + from_offset, *done);
	written = 1;
	return *(int *)from ?: -EOPNOTSUPP;
}

static const struct tcmu_plugin ram = {.read = ram_read,
				       .write = ram_write,
				       .flush = ram_flush,
				       .discard = ram_change,
				       .zero = ram_change,
				       .copy = ram_copy};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const int failures[] = {0, -EIO, -EOPNOTSUPP, -EAGAIN};
	struct iovec iov[4];
	struct scsi_lun lun;
	struct scsi_task task;
	size_t left, at = 0;
	uint8_t *copy;
	int failure;

	if (size < HEADER)
		return 0;
	if (!medium)
		medium = calloc(BLOCKS, BLOCK);
	failure = failures[data[16] & 3];
	lun = (struct scsi_lun){.plugin = &ram,
				.context = &failure,
				.medium = {.size = BLOCK * BLOCKS,
					   .block_size = BLOCK,
					   .discard_granularity = data[16] & 4 ? BLOCK : 0,
					   .read_only = !!(data[16] & 8),
					   .write_cache = !!(data[16] & 16)},
				.write_cache = !!(data[16] & 32),
				.order = PTHREAD_RWLOCK_INITIALIZER};
	left = (size - HEADER) * (data[17] & 31); /* the input, so many times */
	copy = malloc(left ?: 1);
	for (size_t i = 0; i < left; i++)
		copy[i] = data[HEADER + i % (size - HEADER)];
	/* The names of disks in EXTENDED COPY are not found by chance. */
	for (size_t i = 16; data[0] == 0x83 && data[19] & 1 && i + 32 <= left; i += 32) {
		copy[i + 7] = SCSI_NAA_BYTES;
		scsi_naa(&lun, copy + i + 8);
	}
	for (unsigned i = 0; i < 4; i++) {
		size_t part = i == 3 ? left - at : left * data[18] / 256 / (i + 1);

		part = part < left - at ? part : left - at;
		iov[i] = (struct iovec){copy + at, part};
		at += part;
	}
	task = (struct scsi_task){
		.lun = &lun, .cdb = data, .iov = iov, .iov_count = 4, .bytes = left};
	written = 0;
	scsi_run(&task);
	if (task.status != SCSI_GOOD && task.status != SCSI_CHECK_CONDITION &&
	    task.status != SCSI_BUSY)
		__builtin_trap();
	if (task.moved > left || (task.status && task.moved) ||
	    (task.status == SCSI_CHECK_CONDITION) != !!(task.sense[0] & 0x70) ||
	    (written && lun.medium.read_only))
		__builtin_trap();
	free(copy);
	return 0;
}

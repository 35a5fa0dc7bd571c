/* WRITE SAME and UNMAP. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "scsi.h"

#define ANCHOR 0x10
#define UNMAP 0x08
#define NO_DATA_OUT 0x01
#define PART (64u << 10)

static int discard(const struct scsi_lun *lun, uint64_t length, uint64_t offset)
{
	int error = lun->plugin->discard ? lun->plugin->discard(lun->context, length, offset)
					 : -EOPNOTSUPP;

	return error == -EOPNOTSUPP ? 0 : error; /* a hint that may be ignored */
}

static int fill(const struct scsi_lun *lun, const uint8_t *block, uint64_t length, uint64_t offset)
{
	unsigned size = lun->medium.block_size;
	uint8_t *part;
	int error = 0;

	part = aligned_alloc(4096, PART);
	if (!part)
		return -ENOMEM;
	for (unsigned at = 0; at < PART; at += size)
		memcpy(part + at, block, size);
	while (length && !error) {
		uint64_t now = length < PART ? length : PART;

		error = lun->plugin->write(lun->context, part, now, offset);
		length -= now;
		offset += now;
	}
	free(part);
	return error;
}

static int is_zero(const uint8_t *block, size_t size)
{
	return !block[0] && memcmp(block, block + 1, size - 1) == 0;
}

static int write_same(struct scsi_lun *lun, const uint8_t *block, uint64_t length, uint64_t offset)
{
	int error = -EOPNOTSUPP;

	if (is_zero(block, lun->medium.block_size) && lun->plugin->zero)
		error = lun->plugin->zero(lun->context, length, offset);
	if (error == -EOPNOTSUPP)
		error = fill(lun, block, length, offset);
	if (!error && lun->medium.write_cache &&
	    !__atomic_load_n(&lun->write_cache, __ATOMIC_RELAXED))
		error = lun->plugin->flush(lun->context);
	return error;
}

void scsi_write_same(struct scsi_task *task, const struct scsi_row *row)
{
	struct scsi_lun *lun = task->lun;
	unsigned size = lun->medium.block_size, bits = task->cdb[1];
	uint64_t length = scsi_count(task, row) * size, offset = scsi_lba(task, row) * size;
	int no_data = row->length == 16 && bits & NO_DATA_OUT;
	uint8_t *block;
	int error;

	if (!length || bits & 0xe0 || bits & ANCHOR || bits & 0x06 ||
	    (bits & UNMAP && !lun->medium.discard_granularity) ||
	    (!no_data && task->bytes < size)) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	block = calloc(1, size);
	if (!block) {
		scsi_fail(task, -ENOMEM, 1);
		return;
	}
	if (!no_data)
		scsi_copy_in(task, 0, block, size);
	pthread_rwlock_rdlock(&lun->order);
	/* What is unmapped need not read as zeros here (LBPRZ is 0), so the block is written as well. */
	error = bits & UNMAP ? discard(lun, length, offset) : 0;
	if (!error)
		error = write_same(lun, block, length, offset);
	pthread_rwlock_unlock(&lun->order);
	free(block);
	if (error)
		scsi_fail(task, error, 1);
}

void scsi_unmap(struct scsi_task *task, const struct scsi_row *row)
{
	struct scsi_lun *lun = task->lun;
	uint64_t size = lun->medium.block_size, count = scsi_count(task, row), blocks;
	uint8_t list[8 + 16 * SCSI_MAX_UNMAP_RANGES] = {0};
	size_t length, ranges;
	int error = 0;

	if (task->cdb[1] & 1) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	if (!count)
		return;
	length = scsi_copy_in(task, 0, list, count < sizeof(list) ? count : sizeof(list));
	ranges = scsi_get(list + 2, 2) / 16;
	if (count < 8 || length < 8 || (length < count && length < sizeof(list))) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
		return;
	}
	if (ranges > SCSI_MAX_UNMAP_RANGES) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
		return;
	}
	if (ranges > (length - 8) / 16)
		ranges = (length - 8) / 16;
	blocks = scsi_blocks(lun);
	for (size_t i = 0; i < ranges; i++) {
		const uint8_t *range = list + 8 + 16 * i;
		uint64_t lba = scsi_get(range, 8), many = scsi_get(range + 8, 4);

		if (lba > blocks || many > blocks - lba) {
			scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_LBA_OUT_OF_RANGE);
			return;
		}
	}
	pthread_rwlock_rdlock(&lun->order);
	for (size_t i = 0; i < ranges && !error; i++) {
		const uint8_t *range = list + 8 + 16 * i;
		uint64_t many = scsi_get(range + 8, 4);

		if (many)
			error = discard(lun, many * size, scsi_get(range, 8) * size);
	}
	pthread_rwlock_unlock(&lun->order);
	if (error)
		scsi_fail(task, error, 1);
}

/* What every command needs: numbers of its CDB, its sense data, and its data. */
#include "scsi.h"

#include <errno.h>
#include <string.h>

uint64_t scsi_get(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | *at++;
	return value;
}

void scsi_put(uint8_t *at, unsigned bytes, uint64_t value)
{
	while (bytes--) {
		at[bytes] = (uint8_t)value;
		value >>= 8;
	}
}

uint64_t scsi_blocks(const struct scsi_lun *lun)
{
	return lun->medium.size / lun->medium.block_size;
}

uint64_t scsi_lba(const struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t lba = scsi_get(task->cdb + row->lba.at, row->lba.bytes);

	return row->length == 6 ? lba & 0x1fffff : lba;
}

uint64_t scsi_count(const struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t count = scsi_get(task->cdb + row->count.at, row->count.bytes);

	return row->length == 6 && row->flags & SCSI_RANGE && !count ? 256 : count;
}

void scsi_check(struct scsi_task *task, enum scsi_sense_key key, enum scsi_sense_code code)
{
	task->status = SCSI_CHECK_CONDITION;
	task->moved = 0;
	memset(task->sense, 0, sizeof(task->sense));
	task->sense[0] = 0x70; /* current error, fixed format */
	task->sense[2] = (uint8_t)key;
	task->sense[7] = SCSI_SENSE_BYTES - 8;
	scsi_put(task->sense + 12, 2, code);
}

void scsi_miscompare(struct scsi_task *task, uint64_t at)
{
	scsi_check(task, SCSI_MISCOMPARE, SCSI_MISCOMPARE_DURING_VERIFY);
	task->sense[0] |= 0x80; /* the information field is valid */
	scsi_put(task->sense + 3, 4, at);
}

void scsi_fail(struct scsi_task *task, int error, int writing)
{
	switch (-error) {
	case EAGAIN:
	case ENOMEM:
		task->status = SCSI_BUSY;
		task->moved = 0;
		break;
	case EROFS:
		scsi_check(task, SCSI_DATA_PROTECT, SCSI_WRITE_PROTECTED);
		break;
	case ENOSPC:
		scsi_check(task, SCSI_DATA_PROTECT, SCSI_SPACE_ALLOCATION_FAILED);
		break;
	case EIO:
		scsi_check(task, SCSI_MEDIUM_ERROR,
			   writing ? SCSI_WRITE_ERROR : SCSI_UNRECOVERED_READ_ERROR);
		break;
	default:
		scsi_check(task, SCSI_HARDWARE_ERROR, SCSI_INTERNAL_FAILURE);
	}
}

static size_t copy(const struct scsi_task *task, uint64_t at, uint8_t *ours, size_t length, int out)
{
	size_t done = 0;

	for (unsigned i = 0; i < task->iov_count && done < length; i++) {
		size_t here = task->iov[i].iov_len, part;

		if (at >= here) {
			at -= here;
			continue;
		}
		part = here - at < length - done ? here - at : length - done;
		if (out)
			memcpy((uint8_t *)task->iov[i].iov_base + at, ours + done, part);
		else
			memcpy(ours + done, (uint8_t *)task->iov[i].iov_base + at, part);
		done += part;
		at = 0;
	}
	return done;
}

size_t scsi_copy_in(const struct scsi_task *task, uint64_t at, void *to, size_t length)
{
	return copy(task, at, to, length, 0);
}

size_t scsi_copy_out(const struct scsi_task *task, uint64_t at, const void *from, size_t length)
{
	return copy(task, at, (uint8_t *)from, length, 1);
}

void scsi_answer(struct scsi_task *task, const struct scsi_row *row, const uint8_t *data,
		 size_t length)
{
	if (row->count.bytes && scsi_count(task, row) < length)
		length = scsi_count(task, row);
	task->moved = scsi_copy_out(task, 0, data, length);
}

/* Reading, writing and comparing blocks. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "scsi.h"

#define FUA 0x08
#define PROTECT 0xe0 /* protection information, which this disk has none of */
#define COMPARE_PART (64u << 10)

static uint64_t offset_of(const struct scsi_task *task, const struct scsi_row *row)
{
	return scsi_lba(task, row) * task->lun->medium.block_size;
}

/* The bytes that the command moves; 0 with sense set when the CDB asks for what cannot be. */
static uint64_t transfer(struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t bytes = scsi_count(task, row) * task->lun->medium.block_size;

	if (bytes > SCSI_MAX_TRANSFER || (row->length != 6 && task->cdb[1] & PROTECT) ||
	    (row->direction == SCSI_OUT && task->bytes < bytes)) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return 0;
	}
	return bytes;
}

typedef int (*mover)(const struct scsi_lun *lun, void *part, uint64_t length, uint64_t offset);

static int move_in(const struct scsi_lun *lun, void *part, uint64_t length, uint64_t offset)
{
	return lun->plugin->read(lun->context, part, length, offset);
}

static int move_out(const struct scsi_lun *lun, void *part, uint64_t length, uint64_t offset)
{
	return lun->plugin->write(lun->context, part, length, offset);
}

/* Part by part, as long as the parts are of whole blocks; else through a buffer. */
static int move(struct scsi_task *task, mover mover, uint64_t bytes, uint64_t offset)
{
	unsigned block = task->lun->medium.block_size, whole = 0;
	uint64_t left = bytes;
	void *buffer;
	int error = 0;

	for (; whole < task->iov_count && left; whole++) {
		size_t length = task->iov[whole].iov_len;

		if (length % block && length < left)
			break;
		left -= length < left ? length : left;
	}
	if (!left) {
		for (unsigned i = 0; bytes && !error; i++) {
			uint64_t length = task->iov[i].iov_len;

			length = length < bytes ? length : bytes;
			if (length)
				error = mover(task->lun, task->iov[i].iov_base, length, offset);
			bytes -= length;
			offset += length;
		}
		return error;
	}
	buffer = aligned_alloc(4096, (bytes + 4095) & ~4095ULL);
	if (!buffer)
		return -ENOMEM;
	if (mover == move_out)
		scsi_copy_in(task, 0, buffer, bytes);
	error = mover(task->lun, buffer, bytes, offset);
	if (!error && mover == move_in)
		scsi_copy_out(task, 0, buffer, bytes);
	free(buffer);
	return error;
}

static int settle(const struct scsi_task *task, const struct scsi_row *row)
{
	const struct scsi_lun *lun = task->lun;
	int through = row->length != 6 && task->cdb[1] & FUA;

	if (!lun->medium.write_cache ||
	    (!through && __atomic_load_n(&lun->write_cache, __ATOMIC_RELAXED)))
		return 0;
	return lun->plugin->flush(lun->context);
}

void scsi_read(struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t bytes = transfer(task, row), block = task->lun->medium.block_size;
	int error;

	/* An initiator may take less than it asks for: it gets the blocks that it has room for whole, and of
	 * the next the beginning. */
	if (bytes > task->bytes)
		bytes = (task->bytes + block - 1) / block * block;
	if (task->status || !bytes)
		return;
	error = move(task, move_in, bytes, offset_of(task, row));
	if (error)
		scsi_fail(task, error, 0);
	else
		task->moved = bytes < task->bytes ? bytes : task->bytes;
}

void scsi_write(struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t bytes = transfer(task, row);
	int error;

	if (!bytes)
		return;
	pthread_rwlock_rdlock(&task->lun->order);
	error = move(task, move_out, bytes, offset_of(task, row));
	pthread_rwlock_unlock(&task->lun->order);
	if (!error)
		error = settle(task, row);
	if (error)
		scsi_fail(task, error, 1);
}

/* Compares the medium with the task's data: 0 equal, 1 with `at`, or a negative errno. */
static int compare(struct scsi_task *task, uint64_t bytes, uint64_t offset, uint64_t *at)
{
	const struct scsi_lun *lun = task->lun;
	uint8_t *there = aligned_alloc(4096, 2 * COMPARE_PART), *given = there + COMPARE_PART;
	int error = there ? 0 : -ENOMEM;

	for (uint64_t done = 0; done < bytes && !error; done += COMPARE_PART) {
		size_t part = bytes - done < COMPARE_PART ? bytes - done : COMPARE_PART;

		error = lun->plugin->read(lun->context, there, part, offset + done);
		if (error)
			break;
		scsi_copy_in(task, done, given, part);
		for (size_t i = 0; i < part && !error; i++)
			if (there[i] != given[i]) {
				*at = done + i;
				error = 1;
			}
	}
	free(there);
	return error;
}

void scsi_verify(struct scsi_task *task, const struct scsi_row *row)
{
	unsigned how = task->cdb[1] >> 1 & 3;
	uint64_t bytes, at = 0;
	int error;

	if (how == 0) /* the medium is what we read; nothing is compared */
		return;
	bytes = transfer(task, row);
	if (how != 1 && !task->status)
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	if (task->status || !bytes)
		return;
	error = compare(task, bytes, offset_of(task, row), &at);
	if (error > 0)
		scsi_miscompare(task, at);
	else if (error)
		scsi_fail(task, error, 0);
}

void scsi_synchronize(struct scsi_task *task, const struct scsi_row *row)
{
	const struct scsi_lun *lun = task->lun;
	int error = lun->medium.write_cache ? lun->plugin->flush(lun->context) : 0;

	(void)row;
	if (error)
		scsi_fail(task, error, 1);
}

static void note(const struct scsi_task *task, enum scsi_write_state state)
{
	if (!task->lun->write_state)
		return;
	__atomic_store_n(task->lun->write_id, task->id, __ATOMIC_RELEASE);
	__atomic_store_n(task->lun->write_state, state, __ATOMIC_RELEASE);
}

/* What a process that died had done of this very command. */
static enum scsi_write_state noted(const struct scsi_task *task)
{
	if (!task->lun->write_state || *task->lun->write_id != task->id)
		return SCSI_WRITE_NONE;
	return __atomic_load_n(task->lun->write_state, __ATOMIC_ACQUIRE);
}

void scsi_compare_and_write(struct scsi_task *task, const struct scsi_row *row)
{
	struct scsi_lun *lun = task->lun;
	uint64_t count = scsi_count(task, row), bytes = count * lun->medium.block_size, at = 0;
	uint64_t offset = offset_of(task, row);
	enum scsi_write_state before;
	uint8_t *fresh;
	int error = 0;

	if (count > SCSI_MAX_COMPARE || task->cdb[1] & PROTECT || task->bytes < 2 * bytes) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	if (!bytes)
		return;
	fresh = aligned_alloc(4096, (bytes + 4095) & ~4095ULL);
	if (!fresh) {
		scsi_fail(task, -ENOMEM, 1);
		return;
	}
	scsi_copy_in(task, bytes, fresh, bytes);
	pthread_rwlock_wrlock(&lun->order);
	before = noted(task);
	if (before == SCSI_WRITE_NONE)
		error = compare(task, bytes, offset, &at);
	if (!error && before != SCSI_WRITE_DONE) {
		note(task, SCSI_WRITE_MATCHED);
		error = lun->plugin->write(lun->context, fresh, bytes, offset);
		note(task, error ? SCSI_WRITE_NONE : SCSI_WRITE_DONE);
	}
	pthread_rwlock_unlock(&lun->order);
	free(fresh);
	if (!error)
		error = settle(task, row);
	if (error > 0)
		scsi_miscompare(task, at);
	else if (error)
		scsi_fail(task, error, 1);
}

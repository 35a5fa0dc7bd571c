/* What the disk says of itself besides INQUIRY: capacity, mode pages, the commands it knows. */
#include <string.h>

#include "scsi.h"

#define CACHING 0x08
#define CONTROL 0x0a
#define ALL_PAGES 0x3f
#define PAGES_ROOM 64

void scsi_nothing(struct scsi_task *task, const struct scsi_row *row)
{
	(void)task, (void)row; /* TEST UNIT READY, START STOP UNIT: always ready */
}

void scsi_request_sense(struct scsi_task *task, const struct scsi_row *row)
{
	/* Sense goes with each status; none is kept. */
	uint8_t descriptors[8] = {0x72};
	uint8_t fixed[SCSI_SENSE_BYTES] = {0x70, [7] = SCSI_SENSE_BYTES - 8};

	if (task->cdb[1] & 1)
		scsi_answer(task, row, descriptors, sizeof(descriptors));
	else
		scsi_answer(task, row, fixed, sizeof(fixed));
}

void scsi_capacity_10(struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t last = scsi_blocks(task->lun) - 1;
	uint8_t data[8];

	scsi_put(data, 4, last < UINT32_MAX ? last : UINT32_MAX);
	scsi_put(data + 4, 4, task->lun->medium.block_size);
	scsi_answer(task, row, data, sizeof(data));
}

void scsi_capacity_16(struct scsi_task *task, const struct scsi_row *row)
{
	const struct tcmu_medium *medium = &task->lun->medium;
	unsigned physical = medium->physical_block_size ?: medium->block_size;
	uint8_t data[32] = {0};

	scsi_put(data, 8, scsi_blocks(task->lun) - 1);
	scsi_put(data + 8, 4, medium->block_size);
	data[13] = (uint8_t)__builtin_ctz(physical / medium->block_size);
	data[14] = medium->discard_granularity ? 0x80 : 0; /* LBPME */
	scsi_answer(task, row, data, sizeof(data));
}

static size_t caching_page(const struct scsi_lun *lun, unsigned control, uint8_t *page)
{
	int wce;

	page[0] = CACHING;
	page[1] = 18;
	/* 0: current values, 1: what can be changed, 2 and 3: default and saved ones. */
	wce = control == 1 ? 1 : control == 0 ? lun->write_cache : lun->medium.write_cache;
	page[2] = wce ? 0x04 : 0;
	return 20;
}

static size_t control_page(unsigned control, uint8_t *page)
{
	page[0] = CONTROL;
	page[1] = 10;
	page[3] = control == 1 ? 0 : 0x10; /* commands may be reordered */
	return 12;
}

static size_t block_descriptor(const struct scsi_lun *lun, int long_lba, uint8_t *at)
{
	uint64_t blocks = scsi_blocks(lun);

	if (long_lba) {
		scsi_put(at, 8, blocks);
		scsi_put(at + 12, 4, lun->medium.block_size);
		return 16;
	}
	scsi_put(at, 4, blocks < UINT32_MAX ? blocks : UINT32_MAX);
	scsi_put(at + 5, 3, lun->medium.block_size);
	return 8;
}

void scsi_mode_sense(struct scsi_task *task, const struct scsi_row *row)
{
	const struct scsi_lun *lun = task->lun;
	unsigned page = task->cdb[2] & 0x3f, control = task->cdb[2] >> 6;
	unsigned header = row->length == 6 ? 4 : 8;
	int long_lba = row->length == 10 && task->cdb[1] & 0x10;
	uint8_t data[PAGES_ROOM] = {0};
	size_t length = header, descriptors = 0;

	if (control == 3) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_SAVING_NOT_SUPPORTED);
		return;
	}
	if ((page != CACHING && page != CONTROL && page != ALL_PAGES) ||
	    (task->cdb[3] && task->cdb[3] != 0xff)) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	if (!(task->cdb[1] & 0x08))
		descriptors = block_descriptor(lun, long_lba, data + header);
	length += descriptors;
	if (page == CACHING || page == ALL_PAGES)
		length += caching_page(lun, control, data + length);
	if (page == CONTROL || page == ALL_PAGES)
		length += control_page(control, data + length);
	data[header == 4 ? 2 : 3] = (uint8_t)(lun->medium.read_only ? 0x90 : 0x10); /* WP, DPOFUA */
	if (header == 4) {
		data[0] = (uint8_t)(length - 1);
		data[3] = (uint8_t)descriptors;
	} else {
		scsi_put(data, 2, length - 2);
		data[4] = long_lba;
		scsi_put(data + 6, 2, descriptors);
	}
	scsi_answer(task, row, data, length);
}

static int same_but_wce(const uint8_t *given, const uint8_t *ours, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if ((given[i] ^ ours[i]) & ~(i == 2 ? 0x04 : i == 0 ? 0x80 : 0))
			return 0;
	return 1;
}

void scsi_mode_select(struct scsi_task *task, const struct scsi_row *row)
{
	struct scsi_lun *lun = task->lun;
	unsigned header = row->length == 6 ? 4 : 8;
	uint8_t data[256] = {0}, ours[PAGES_ROOM] = {0};
	uint64_t count = scsi_count(task, row);
	size_t at, length;

	if (!(task->cdb[1] & 0x10) || task->cdb[1] & 1) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	if (!count)
		return;
	length = scsi_copy_in(task, 0, data, count < sizeof(data) ? count : sizeof(data));
	at = header + (header == 4 ? data[3] : scsi_get(data + 6, 2));
	if (length < count || length < header || at > length) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
		return;
	}
	for (int wce = lun->write_cache; at < length; at += 2 + data[at + 1]) {
		size_t page = (data[at] & 0x3f) == CACHING ? caching_page(lun, 0, ours)
							   : control_page(0, ours);

		if (length - at < 2 || length - at < page) {
			scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
			return;
		}
		if ((ours[0] == CONTROL && memcmp(data + at, ours, page) != 0) ||
		    !same_but_wce(data + at, ours, page)) {
			scsi_check(task, SCSI_ILLEGAL_REQUEST,
				   SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
			return;
		}
		if (ours[0] == CACHING)
			wce = !!(data[at + 2] & 0x04);
		if (at + page == length)
			__atomic_store_n(&lun->write_cache, wce, __ATOMIC_RELAXED);
		memset(ours, 0, sizeof(ours));
	}
}

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

static size_t describe(const struct scsi_row *row, int timeouts, uint8_t *to)
{
	to[0] = row->opcode;
	scsi_put(to + 2, 2, row->action < 0 ? 0 : (uint64_t)row->action);
	to[5] = (uint8_t)((timeouts ? 2 : 0) | (row->action >= 0)); /* CTDP, SERVACTV */
	scsi_put(to + 6, 2, row->length);
	if (timeouts)
		scsi_put(to + 8, 2, 10); /* and zeros: no time-outs are given */
	return timeouts ? 20 : 8;
}

static int is_offered(const struct scsi_lun *lun, const struct scsi_row *row)
{
	return !(row->flags & SCSI_MAY_UNMAP) || lun->medium.discard_granularity;
}

static void all_opcodes(struct scsi_task *task, const struct scsi_row *row, int timeouts)
{
	uint8_t data[4 + 64 * 20] = {0};
	size_t length = 4;

	for (unsigned i = 0; i < scsi_rows; i++)
		if (is_offered(task->lun, &scsi_table[i]))
			length += describe(&scsi_table[i], timeouts, data + length);
	scsi_put(data, 4, length - 4);
	scsi_answer(task, row, data, length);
}

static const struct scsi_row *find(const struct scsi_lun *lun, uint8_t opcode, int action,
				   int *has_actions)
{
	const struct scsi_row *found = NULL;

	*has_actions = -1;
	for (unsigned i = 0; i < scsi_rows; i++)
		if (scsi_table[i].opcode == opcode && is_offered(lun, &scsi_table[i])) {
			*has_actions = scsi_table[i].action >= 0;
			if (scsi_table[i].action == action)
				found = &scsi_table[i];
		}
	return found;
}

static void one_opcode(struct scsi_task *task, const struct scsi_row *row, unsigned options,
		       int timeouts)
{
	int has_actions, action = (int)scsi_get(task->cdb + 4, 2);
	const struct scsi_row *found;
	uint8_t data[4 + 16 + 12] = {0};
	size_t length = 4;

	find(task->lun, task->cdb[3], -1, &has_actions);
	/* 1: an opcode without service actions; 2: with; 3: either. */
	if ((options == 1 && has_actions == 1) || (options == 2 && has_actions == 0)) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	found = find(task->lun, task->cdb[3], has_actions == 1 ? action : -1, &has_actions);
	data[1] = (uint8_t)(found ? 3 : 1); /* supported as the standard says, or not */
	if (found) {
		if (timeouts)
			data[1] |= 0x80;
		scsi_put(data + 2, 2, found->length);
		memcpy(data + 4, found->usage, found->length);
		length += found->length;
		if (timeouts) {
			scsi_put(data + length, 2, 10);
			length += 12;
		}
	}
	scsi_answer(task, row, data, length);
}

void scsi_supported_opcodes(struct scsi_task *task, const struct scsi_row *row)
{
	unsigned options = task->cdb[2] & 7;
	int timeouts = !!(task->cdb[2] & 0x80);

	if (options == 0)
		all_opcodes(task, row, timeouts);
	else if (options <= 3)
		one_opcode(task, row, options, timeouts);
	else
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

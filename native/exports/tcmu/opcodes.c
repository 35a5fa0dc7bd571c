/* REPORT SUPPORTED OPERATION CODES: the table of commands, as SPC-4 6.35 has it. */
#include "scsi.h"

#include <string.h>

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

	for (unsigned i = 0; i < task->row_count; i++)
		if (is_offered(task->lun, &task->rows[i]))
			length += describe(&task->rows[i], timeouts, data + length);
	scsi_put(data, 4, length - 4);
	scsi_answer(task, row, data, length);
}

static const struct scsi_row *find(const struct scsi_task *task, uint8_t opcode, int action,
				   int *has_actions)
{
	const struct scsi_row *found = NULL;

	*has_actions = -1;
	for (unsigned i = 0; i < task->row_count; i++)
		if (task->rows[i].opcode == opcode && is_offered(task->lun, &task->rows[i])) {
			*has_actions = task->rows[i].action >= 0;
			if (task->rows[i].action == action)
				found = &task->rows[i];
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

	find(task, task->cdb[3], -1, &has_actions);
	/* 1: an opcode without service actions; 2: with; 3: either. */
	if ((options == 1 && has_actions == 1) || (options == 2 && has_actions == 0)) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	found = find(task, task->cdb[3], has_actions == 1 ? action : -1, &has_actions);
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

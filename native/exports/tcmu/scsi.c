#include "scsi.h"

#define LBA_6                                                                                      \
	{                                                                                          \
		1, 3                                                                               \
	}
#define LBA_10                                                                                     \
	{                                                                                          \
		2, 4                                                                               \
	}
#define LBA_16                                                                                     \
	{                                                                                          \
		2, 8                                                                               \
	}
#define NO_FIELD                                                                                   \
	{                                                                                          \
		0, 0                                                                               \
	}
#define ALL4 0xff, 0xff, 0xff, 0xff
#define ALL8 ALL4, ALL4

/* The whole disk. `usage` has the opcode first; of the rest the bits that are looked at. */
/* clang-format off */
static const struct scsi_row table[] = {
    {0x00, -1, 6, SCSI_NONE, NO_FIELD, NO_FIELD, 0, scsi_nothing, {0x00}},
    {0x03, -1, 6, SCSI_IN, NO_FIELD, {4, 1}, 0, scsi_request_sense, {0x03, 0x01, 0, 0, 0xff}},
    {0x08, -1, 6, SCSI_IN, LBA_6, {4, 1}, SCSI_RANGE, scsi_read, {0x08, 0x1f, 0xff, 0xff, 0xff}},
    {0x0a, -1, 6, SCSI_OUT, LBA_6, {4, 1}, SCSI_RANGE | SCSI_WRITES, scsi_write,
     {0x0a, 0x1f, 0xff, 0xff, 0xff}},
    {0x12, -1, 6, SCSI_IN, NO_FIELD, {3, 2}, 0, scsi_inquiry, {0x12, 0x01, 0xff, 0xff, 0xff}},
    {0x15, -1, 6, SCSI_OUT, NO_FIELD, {4, 1}, 0, scsi_mode_select, {0x15, 0x11, 0, 0, 0xff}},
    {0x1a, -1, 6, SCSI_IN, NO_FIELD, {4, 1}, 0, scsi_mode_sense, {0x1a, 0x08, 0xff, 0xff, 0xff}},
    {0x1b, -1, 6, SCSI_NONE, NO_FIELD, NO_FIELD, 0, scsi_nothing, {0x1b, 0x01, 0, 0, 0xf7}},
    {0x25, -1, 10, SCSI_IN, NO_FIELD, NO_FIELD, 0, scsi_capacity_10, {0x25}},
    {0x28, -1, 10, SCSI_IN, LBA_10, {7, 2}, SCSI_RANGE, scsi_read,
     {0x28, 0x18, ALL4, 0, 0xff, 0xff}},
    {0x2a, -1, 10, SCSI_OUT, LBA_10, {7, 2}, SCSI_RANGE | SCSI_WRITES, scsi_write,
     {0x2a, 0x18, ALL4, 0, 0xff, 0xff}},
    {0x2f, -1, 10, SCSI_OUT, LBA_10, {7, 2}, SCSI_RANGE, scsi_verify,
     {0x2f, 0x16, ALL4, 0, 0xff, 0xff}},
    {0x35, -1, 10, SCSI_NONE, LBA_10, {7, 2}, SCSI_RANGE, scsi_synchronize,
     {0x35, 0x02, ALL4, 0, 0xff, 0xff}},
    {0x41, -1, 10, SCSI_OUT, LBA_10, {7, 2}, SCSI_RANGE | SCSI_WRITES, scsi_write_same,
     {0x41, 0x08, ALL4, 0, 0xff, 0xff}},
    {0x42, -1, 10, SCSI_OUT, NO_FIELD, {7, 2}, SCSI_WRITES | SCSI_MAY_UNMAP, scsi_unmap,
     {0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {0x55, -1, 10, SCSI_OUT, NO_FIELD, {7, 2}, 0, scsi_mode_select,
     {0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff}},
    {0x5a, -1, 10, SCSI_IN, NO_FIELD, {7, 2}, 0, scsi_mode_sense,
     {0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff}},
    {0x83, 0x00, 16, SCSI_OUT, NO_FIELD, {10, 4}, 0, scsi_extended_copy,
     {0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, ALL4}},
    {0x84, 0x00, 16, SCSI_IN, NO_FIELD, {10, 4}, 0, scsi_copy_status,
     {0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, ALL4}},
    {0x84, 0x03, 16, SCSI_IN, NO_FIELD, {10, 4}, 0, scsi_copy_parameters,
     {0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, ALL4}},
    {0x88, -1, 16, SCSI_IN, LBA_16, {10, 4}, SCSI_RANGE, scsi_read, {0x88, 0x18, ALL8, ALL4}},
    {0x89, -1, 16, SCSI_OUT, LBA_16, {13, 1}, SCSI_RANGE | SCSI_WRITES, scsi_compare_and_write,
     {0x89, 0x18, ALL8, 0, 0, 0, 0xff}},
    {0x8a, -1, 16, SCSI_OUT, LBA_16, {10, 4}, SCSI_RANGE | SCSI_WRITES, scsi_write,
     {0x8a, 0x18, ALL8, ALL4}},
    {0x8f, -1, 16, SCSI_OUT, LBA_16, {10, 4}, SCSI_RANGE, scsi_verify, {0x8f, 0x16, ALL8, ALL4}},
    {0x91, -1, 16, SCSI_NONE, LBA_16, {10, 4}, SCSI_RANGE, scsi_synchronize,
     {0x91, 0x02, ALL8, ALL4}},
    {0x93, -1, 16, SCSI_OUT, LBA_16, {10, 4}, SCSI_RANGE | SCSI_WRITES, scsi_write_same,
     {0x93, 0x09, ALL8, ALL4}},
    {0x9e, 0x10, 16, SCSI_IN, NO_FIELD, {10, 4}, 0, scsi_capacity_16,
     {0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, ALL4}},
    {0xa3, 0x0c, 12, SCSI_IN, NO_FIELD, {6, 4}, 0, scsi_supported_opcodes,
     {0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, ALL4}},
    {0xa8, -1, 12, SCSI_IN, LBA_10, {6, 4}, SCSI_RANGE, scsi_read, {0xa8, 0x18, ALL8}},
    {0xaa, -1, 12, SCSI_OUT, LBA_10, {6, 4}, SCSI_RANGE | SCSI_WRITES, scsi_write,
     {0xaa, 0x18, ALL8}},
    {0xaf, -1, 12, SCSI_OUT, LBA_10, {6, 4}, SCSI_RANGE, scsi_verify, {0xaf, 0x16, ALL8}},
};
/* clang-format on */
#define ROWS (sizeof(table) / sizeof(table[0]))

static const struct scsi_row *row_of(const uint8_t *cdb, int *opcode_known)
{
	*opcode_known = 0;
	for (unsigned i = 0; i < ROWS; i++)
		if (table[i].opcode == cdb[0]) {
			*opcode_known = 1;
			if (table[i].action < 0 || table[i].action == (cdb[1] & 0x1f))
				return &table[i];
		}
	return NULL;
}

static int in_range(const struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t blocks = scsi_blocks(task->lun), lba = scsi_lba(task, row);

	return lba <= blocks && scsi_count(task, row) <= blocks - lba;
}

void scsi_run(struct scsi_task *task)
{
	int opcode_known;
	const struct scsi_row *row = row_of(task->cdb, &opcode_known);
	const struct tcmu_medium *medium = &task->lun->medium;

	task->rows = table;
	task->row_count = ROWS;
	task->status = SCSI_GOOD;
	task->moved = 0;
	if (!row && opcode_known)
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	else if (!row || (row->flags & SCSI_MAY_UNMAP && !medium->discard_granularity))
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_OPERATION_CODE);
	else if (row->flags & SCSI_WRITES && medium->read_only)
		scsi_check(task, SCSI_DATA_PROTECT, SCSI_WRITE_PROTECTED);
	else if (row->flags & SCSI_RANGE && !in_range(task, row))
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_LBA_OUT_OF_RANGE);
	else
		row->run(task, row);
}

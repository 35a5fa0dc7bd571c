/* What is told of third-party copies: RECEIVE COPY RESULTS (SPC-4 6.32) and VPD page 0x8F (SPC-4 7.8.17). */
#include <string.h>

#include "scsi.h"

#define LIST_LENGTH (SCSI_COPY_CSCDS * 32 + SCSI_COPY_SEGMENTS * 28)

static const uint8_t descriptors[] = {0x02, 0xe4}; /* block to block; by designator */

void scsi_copy_status(struct scsi_task *task, const struct scsi_row *row)
{
	static const uint8_t states[] = {
		[SCSI_COPY_RUNNING] = 0x00, [SCSI_COPY_DONE] = 0x01, [SCSI_COPY_FAILED] = 0x02};
	struct scsi_copied copied;
	uint8_t data[12] = {0};

	if (!scsi_copied(task->lun, task->cdb[2], &copied)) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	scsi_put(data, 4, sizeof(data) - 4);
	data[4] = states[copied.state];
	scsi_put(data + 5, 2, copied.segments);
	scsi_put(data + 8, 4, copied.bytes); /* in bytes: the units of byte 7 are 0 */
	scsi_answer(task, row, data, sizeof(data));
}

void scsi_copy_parameters(struct scsi_task *task, const struct scsi_row *row)
{
	uint8_t data[44 + sizeof(descriptors)] = {0};

	scsi_put(data, 4, sizeof(data) - 4);
	data[4] = 1; /* SNLID: a copy needs no list identifier */
	scsi_put(data + 8, 2, SCSI_COPY_CSCDS);
	scsi_put(data + 10, 2, SCSI_COPY_SEGMENTS);
	scsi_put(data + 12, 4, LIST_LENGTH);
	scsi_put(data + 16, 4, SCSI_COPY_SEGMENT_BYTES);
	scsi_put(data + 34, 2, SCSI_COPIES_KEPT); /* at a time, of all that ask */
	data[36] = SCSI_COPIES_KEPT;
	data[43] = sizeof(descriptors);
	memcpy(data + 44, descriptors, sizeof(descriptors));
	scsi_answer(task, row, data, sizeof(data));
}

/* Each begins with its type and the length of what follows, which is a multiple of four. */
static uint8_t *descriptor(uint8_t *at, unsigned type, unsigned length)
{
	scsi_put(at, 2, type);
	scsi_put(at + 2, 2, length);
	return at + 4;
}

size_t scsi_third_party_copy(uint8_t *page)
{
	/* Opcode, how many service actions, and these. */
	static const uint8_t commands[] = {0x83, 1, 0x00, 0x84, 2, 0x00, 0x03};
	uint8_t *at = descriptor(page + 4, 0x0001, 8);

	at[0] = sizeof(commands);
	memcpy(at + 1, commands, sizeof(commands));
	at = descriptor(at + 8, 0x0004, 28); /* parameter data */
	scsi_put(at + 4, 2, SCSI_COPY_CSCDS);
	scsi_put(at + 6, 2, SCSI_COPY_SEGMENTS);
	scsi_put(at + 8, 4, LIST_LENGTH);
	at = descriptor(at + 28, 0x0008, 4); /* supported descriptors */
	at[0] = sizeof(descriptors);
	memcpy(at + 1, descriptors, sizeof(descriptors));
	at = descriptor(at + 4, 0x8001, 32); /* general copy operations */
	scsi_put(at, 4, SCSI_COPIES_KEPT);
	scsi_put(at + 4, 4, SCSI_COPIES_KEPT);
	scsi_put(at + 8, 4, SCSI_COPY_SEGMENT_BYTES);
	return (size_t)(at + 32 - (page + 4));
}

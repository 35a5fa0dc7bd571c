/* INQUIRY and its pages of vital product data. */
#include <string.h>

#include "scsi.h"

#define VENDOR "SEALSVC "
#define PRODUCT "TCMU disk       "
#define REVISION "0001"
#define PAGES_ROOM 512

static size_t text(uint8_t *to, const char *from)
{
	size_t length = strlen(from);

	memcpy(to, from, length);
	return length;
}

static size_t supported(uint8_t *page)
{
	static const uint8_t pages[] = {0x00, 0x80, 0x83, 0x8f, 0xb0, 0xb1, 0xb2};

	memcpy(page + 4, pages, sizeof(pages));
	return sizeof(pages);
}

static size_t identification(const struct scsi_lun *lun, uint8_t *page)
{
	uint8_t *at = page + 4;
	size_t length;

	/* T10 vendor id, in ASCII, of the logical unit. */
	at[0] = 0x02;
	at[1] = 0x01;
	length = text(at + 4, VENDOR);
	length += text(at + 4 + length, lun->serial);
	at[3] = (uint8_t)length;
	at += 4 + length;
	/* NAA, in binary. */
	at[0] = 0x01;
	at[1] = 0x03;
	at[3] = SCSI_NAA_BYTES;
	scsi_naa(lun, at + 4);
	return (size_t)(at + 4 + SCSI_NAA_BYTES - (page + 4));
}

static size_t limits(const struct scsi_lun *lun, uint8_t *page)
{
	const struct tcmu_medium *medium = &lun->medium;
	unsigned block = medium->block_size, physical = medium->physical_block_size ?: block;

	page[4] = 1;		    /* WSNZ: WRITE SAME of no blocks is refused */
	page[5] = SCSI_MAX_COMPARE; /* blocks of COMPARE AND WRITE */
	scsi_put(page + 6, 2, physical / block);
	scsi_put(page + 8, 4, SCSI_MAX_TRANSFER / block);
	scsi_put(page + 12, 4, SCSI_MAX_TRANSFER / block / 8);
	if (medium->discard_granularity) {
		scsi_put(page + 20, 4, UINT32_MAX);
		scsi_put(page + 24, 4, SCSI_MAX_UNMAP_RANGES);
		scsi_put(page + 28, 4, medium->discard_granularity / block);
	}
	scsi_put(page + 36, 8, scsi_blocks(lun)); /* of WRITE SAME */
	return 60;
}

static size_t characteristics(uint8_t *page)
{
	scsi_put(page + 4, 2, 1); /* does not rotate */
	return 60;
}

static size_t provisioning(const struct scsi_lun *lun, uint8_t *page)
{
	int unmaps = lun->medium.discard_granularity != 0;

	page[5] = unmaps ? 0xe0 : 0; /* UNMAP, WRITE SAME (16) and (10) with the UNMAP bit */
	page[6] = unmaps ? 2 : 0;    /* thin, or fully provisioned */
	return 4;
}

static void vital_product_data(struct scsi_task *task, const struct scsi_row *row)
{
	const struct scsi_lun *lun = task->lun;
	uint8_t page[PAGES_ROOM] = {0, task->cdb[2]};
	size_t length;

	switch (task->cdb[2]) {
	case 0x00:
		length = supported(page);
		break;
	case 0x80:
		length = text(page + 4, lun->serial);
		break;
	case 0x83:
		length = identification(lun, page);
		break;
	case 0x8f:
		length = scsi_third_party_copy(page);
		break;
	case 0xb0:
		length = limits(lun, page);
		break;
	case 0xb1:
		length = characteristics(page);
		break;
	case 0xb2:
		length = provisioning(lun, page);
		break;
	default:
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	scsi_put(page + 2, 2, length);
	scsi_answer(task, row, page, 4 + length);
}

void scsi_inquiry(struct scsi_task *task, const struct scsi_row *row)
{
	uint8_t data[66] = {
		[2] = 0x06, /* SPC-4 */
		[3] = 0x02, /* response data format */
		[5] = 0x08, /* 3PC: third-party copies */
		[7] = 0x02, /* CMDQUE */
	};

	if (task->cdb[1] & 1) {
		vital_product_data(task, row);
		return;
	}
	if (task->cdb[1] & 2 || task->cdb[2]) {
		scsi_check(task, SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
		return;
	}
	data[4] = sizeof(data) - 5;
	text(data + 8, VENDOR);
	text(data + 16, PRODUCT);
	text(data + 32, REVISION);
	scsi_put(data + 58, 2, 0x00a0); /* SAM-5 */
	scsi_put(data + 60, 2, 0x0460); /* SPC-4 */
	scsi_put(data + 62, 2, 0x04c0); /* SBC-3 */
	scsi_answer(task, row, data, sizeof(data));
}

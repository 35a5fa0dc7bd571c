/* The disk above a backend in memory: what each command answers, and what is refused with which sense. */
#include <errno.h>

#include "disk.h"

static void test_table(void)
{
	uint8_t known[256] = {0};

	RUN(0, 0x00); /* which tells the table */
	for (unsigned i = 0; i < task.row_count; i++) {
		const struct scsi_row *row = &task.rows[i];
		static const uint8_t lengths[] = {6, 10, 10, 0, 16, 12, 0, 0};

		known[row->opcode] = 1;
		CHECK(row->usage[0] == row->opcode && row->run);
		CHECK(row->length == lengths[row->opcode >> 5]);
		CHECK(row->lba.at + row->lba.bytes < row->length);
		CHECK(row->count.at + row->count.bytes < row->length);
		CHECK(!(row->flags & SCSI_RANGE) || row->lba.bytes);
		for (unsigned byte = row->length; byte < 16; byte++)
			CHECK(!row->usage[byte]);
		CHECK(!row->usage[row->length - 1]); /* CONTROL: no bit of it is looked at */
	}
	for (unsigned opcode = 0; opcode < 256; opcode++)
		if (!known[opcode]) {
			RUN(0, (uint8_t)opcode);
			refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_OPERATION_CODE);
		}
	RUN(32, 0x9e, 0x11); /* a service action that there is not */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

static void test_inquiry(void)
{
	RUN(96, 0x12, 0, 0, 0, 96);
	good();
	CHECK(task.moved == 66 && data[0] == 0 && memcmp(data + 8, "SEALSVC ", 8) == 0);
	RUN(96, 0x12, 0, 0, 0, 5); /* the allocation length, and not the buffer */
	CHECK(task.moved == 5);
	RUN(255, 0x12, 1, 0x00, 0, 255);
	good();
	CHECK(task.moved == 11 && memcmp(data + 4, "\0\x80\x83\x8f\xb0\xb1\xb2", 7) == 0);
	RUN(255, 0x12, 1, 0x80, 0, 255);
	CHECK(task.moved == 15 && memcmp(data + 4, "0123-serial", 11) == 0);
	RUN(255, 0x12, 1, 0x83, 0, 255);
	CHECK(data[4] == 2 && data[5] == 1 && scsi_get(data + 2, 2) + 4 == task.moved);
	RUN(255, 0x12, 1, 0xb0, 0, 255);
	CHECK(task.moved == 64 && data[5] == SCSI_MAX_COMPARE && scsi_get(data + 6, 2) == 8);
	RUN(255, 0x12, 1, 0xb1, 0, 255);
	CHECK(scsi_get(data + 4, 2) == 1);
	RUN(255, 0x12, 1, 0xb2, 0, 255);
	CHECK(task.moved == 8 && data[5] == 0xe0);
	RUN(255, 0x12, 1, 0xc0, 0, 255);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	RUN(255, 0x12, 0, 0x80, 0, 255); /* a page, but not of vital product data */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

static void test_capacity(void)
{
	RUN(8, 0x25);
	CHECK(scsi_get(data, 4) == BLOCKS - 1 && scsi_get(data + 4, 4) == BLOCK);
	RUN(32, 0x9e, 0x10, [13] = 32);
	CHECK(task.moved == 32 && scsi_get(data, 8) == BLOCKS - 1 && data[13] == 3);
	CHECK(data[14] == 0x80);
	lun.medium.size = 3ULL << 41; /* too many blocks for 32 bits */
	RUN(8, 0x25);
	CHECK(scsi_get(data, 4) == UINT32_MAX);
	lun.medium.size = sizeof(medium);
}

static void test_modes(void)
{
	RUN(192, 0x1a, 0, 0x08, 0, 192);
	good();
	CHECK(task.moved == 32 && data[0] == 31 && data[2] == 0x10 && data[3] == 8);
	CHECK(data[12] == 0x08 && data[14] == 0x04);
	RUN(192, 0x5a, 0x18, 0x3f, 0, 0, 0, 0, 0, 192);
	CHECK(task.moved == 8 + 20 + 12 && scsi_get(data, 2) == task.moved - 2);
	RUN(192, 0x5a, 0, 0x1c, 0, 0, 0, 0, 0, 192);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	RUN(192, 0x1a, 0, 0xc8, 0, 192);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_SAVING_NOT_SUPPORTED);
	/* The write cache off: each write is flushed. */
	memset(data, 0, 24);
	data[4] = 0x08;
	data[5] = 18;
	RUN(24, 0x15, 0x10, 0, 0, 24);
	good();
	CHECK(!lun.write_cache);
	flushes = 0;
	RUN(512, 0x2a, [8] = 1);
	CHECK(flushes == 1);
	data[4] = 0x08;
	data[5] = 18;
	data[6] = 0x05; /* and one that cannot be changed */
	RUN(24, 0x15, 0x10, 0, 0, 24);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	CHECK(!lun.write_cache);
	data[0] = data[1] = data[2] = data[3] = 0;
	data[6] = 0x04;
	RUN(24, 0x15, 0x10, 0, 0, 24);
	good();
	CHECK(lun.write_cache);
	RUN(10, 0x15, 0x10, 0, 0, 10);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
}

static void test_opcodes(void)
{
	RUN(4096, 0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0);
	good();
	CHECK(scsi_get(data, 4) == 8 * task.row_count && task.moved == 4 + 8 * task.row_count);
	RUN(64, 0xa3, 0x0c, 1, 0x89, 0, 0, 0, 0, 0, 64);
	CHECK(data[1] == 3 && scsi_get(data + 2, 2) == 16 && data[4] == 0x89);
	RUN(64, 0xa3, 0x0c, 1, 0x7f, 0, 0, 0, 0, 0, 64);
	CHECK(task.moved == 4 && data[1] == 1);
	RUN(64, 0xa3, 0x0c, 2, 0x9e, 0, 0x10, 0, 0, 0, 64);
	CHECK(data[1] == 3);
	RUN(64, 0xa3, 0x0c, 1, 0x9e, 0, 0x10, 0, 0, 0, 64); /* it has service actions */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	RUN(64, 0xa3, 0x0c, 0x83, 0x28, 0, 0, 0, 0, 0, 64);
	CHECK(data[1] == 0x83 && task.moved == 4 + 10 + 12);
}

/* The same four blocks written and read by each form of READ and WRITE. */
static void test_forms(void)
{
	static const uint8_t forms[][2][16] = {
		{{0x0a, 0, 0, 9, 4}, {0x08, 0, 0, 9, 4}},
		{{0x2a, 0, 0, 0, 0, 9, 0, 0, 4}, {0x28, 0, 0, 0, 0, 9, 0, 0, 4}},
		{{0xaa, 0, 0, 0, 0, 9, 0, 0, 0, 4}, {0xa8, 0, 0, 0, 0, 9, 0, 0, 0, 4}},
		{{0x8a, [9] = 9, [13] = 4}, {0x88, [9] = 9, [13] = 4}},
	};

	for (unsigned i = 0; i < 4; i++) {
		memset(data, 0x40 + (int)i, 4 * BLOCK);
		run(forms[i][0], 4 * BLOCK);
		good();
		CHECK(medium[9 * BLOCK] == 0x40 + i && medium[13 * BLOCK - 1] == 0x40 + i);
		CHECK(medium[13 * BLOCK] == 0);
		memset(data, 0, 4 * BLOCK);
		run(forms[i][1], 4 * BLOCK);
		good();
		CHECK(task.moved == 4 * BLOCK && data[0] == 0x40 + i);
		CHECK(data[4 * BLOCK - 1] == 0x40 + i);
	}
	RUN(256 * BLOCK, 0x08, 0, 0, 0, 0); /* none means 256 in the form of six bytes */
	CHECK(task.moved == 256 * BLOCK);
	RUN(BLOCK, 0x28); /* and none in the others */
	good();
	CHECK(task.moved == 0);
	RUN(700, 0x28, 0, 0, 0, 0, 9, 0, 0, 2); /* less room than was asked for */
	CHECK(task.moved == 700 && data[699] == 0x43);
	RUN(700, 0x2a, 0, 0, 0, 0, 9, 0, 0, 2);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	RUN(BLOCK, 0x28, 0x20, [8] = 1); /* protection information */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	flushes = 0;
	RUN(BLOCK, 0x2a, 0x08, [8] = 1);
	CHECK(flushes == 1);
	RUN(0, 0x35);
	CHECK(flushes == 2);
}

static void test_ends(void)
{
	RUN(BLOCK, 0x28, 0, 0, 0, BLOCKS >> 8, 0, 0, 0, 1);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_LBA_OUT_OF_RANGE);
	RUN(BLOCK, 0x28, 0, 0, 0, BLOCKS >> 8, 0);
	good(); /* nothing, just at the end */
	RUN(2 * BLOCK, 0x2a, 0, 0, 0, (BLOCKS >> 8) - 1, 0xff, 0, 0, 2);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_LBA_OUT_OF_RANGE);
	RUN(BLOCK, 0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_LBA_OUT_OF_RANGE);
	lun.medium.read_only = 1;
	RUN(BLOCK, 0x2a, [8] = 1);
	refused(SCSI_DATA_PROTECT, SCSI_WRITE_PROTECTED);
	lun.medium.read_only = 0;
	failure = -EIO;
	RUN(BLOCK, 0x2a, [8] = 1);
	refused(SCSI_MEDIUM_ERROR, SCSI_WRITE_ERROR);
	RUN(BLOCK, 0x28, [8] = 1);
	refused(SCSI_MEDIUM_ERROR, SCSI_UNRECOVERED_READ_ERROR);
	failure = -EAGAIN;
	RUN(BLOCK, 0x28, [8] = 1);
	CHECK(task.status == SCSI_BUSY);
	failure = -ENOSPC;
	RUN(BLOCK, 0x2a, [8] = 1);
	refused(SCSI_DATA_PROTECT, SCSI_SPACE_ALLOCATION_FAILED);
	failure = 0;
}

static void test_compare_and_write(void)
{
	uint32_t state = SCSI_WRITE_NONE, id = 0;

	lun.write_state = &state;
	lun.write_id = &id;
	memset(medium + 20 * BLOCK, 'a', 2 * BLOCK);
	memset(data, 'a', 2 * BLOCK);
	memset(data + 2 * BLOCK, 'b', 2 * BLOCK);
	RUN(4 * BLOCK, 0x89, [9] = 20, [13] = 2);
	good();
	CHECK(medium[20 * BLOCK] == 'b' && medium[22 * BLOCK - 1] == 'b');
	CHECK(state == SCSI_WRITE_DONE && id == 7);
	state = SCSI_WRITE_NONE;
	medium[20 * BLOCK + 700] = 'c';
	memset(data, 'b', 2 * BLOCK);
	RUN(4 * BLOCK, 0x89, [9] = 20, [13] = 2);
	refused(SCSI_MISCOMPARE, SCSI_MISCOMPARE_DURING_VERIFY);
	CHECK(task.sense[0] & 0x80 && scsi_get(task.sense + 3, 4) == 700);
	CHECK(medium[20 * BLOCK] == 'b' && state == SCSI_WRITE_NONE);
	/* A process died after the comparison: its writing is done again, or only its answer given. */
	memset(data + 2 * BLOCK, 'd', 2 * BLOCK);
	state = SCSI_WRITE_MATCHED;
	RUN(4 * BLOCK, 0x89, [9] = 20, [13] = 2);
	good();
	CHECK(medium[20 * BLOCK] == 'd' && medium[22 * BLOCK - 1] == 'd');
	medium[20 * BLOCK] = 'e';
	RUN(4 * BLOCK, 0x89, [9] = 20, [13] = 2);
	good();
	CHECK(medium[20 * BLOCK] == 'e');
	id = 8; /* another command's */
	RUN(4 * BLOCK, 0x89, [9] = 20, [13] = 2);
	refused(SCSI_MISCOMPARE, SCSI_MISCOMPARE_DURING_VERIFY);
	lun.write_state = lun.write_id = NULL;
	RUN(2 * BLOCK, 0x89, [9] = 20, [13] = 2);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	RUN(200 * BLOCK, 0x89, [13] = SCSI_MAX_COMPARE + 1);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

static void test_verify(void)
{
	memset(medium + 30 * BLOCK, 'v', 3 * BLOCK);
	memset(data, 'v', 3 * BLOCK);
	RUN(3 * BLOCK, 0x2f, 0x02, 0, 0, 0, 30, 0, 0, 3);
	good();
	data[3 * BLOCK - 1] = 'w';
	RUN(3 * BLOCK, 0x8f, 0x02, [9] = 30, [13] = 3);
	refused(SCSI_MISCOMPARE, SCSI_MISCOMPARE_DURING_VERIFY);
	RUN(0, 0x2f, 0, 0, 0, 0, 30, 0, 0, 3);
	good();
	RUN(3 * BLOCK, 0xaf, 0x04, 0, 0, 0, 30, 0, 0, 0, 3);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

static void test_write_same(void)
{
	memset(data, 's', BLOCK);
	RUN(BLOCK, 0x93, [9] = 40, [13] = 200);
	good();
	CHECK(medium[40 * BLOCK] == 's' && medium[240 * BLOCK - 1] == 's' && !medium[240 * BLOCK]);
	RUN(0, 0x93, 0x01, [9] = 41, [13] = 1); /* zeros, without data */
	good();
	CHECK(medium[41 * BLOCK] == 0 && medium[42 * BLOCK] == 's');
	discards = 0;
	memset(data, 0, BLOCK);
	RUN(BLOCK, 0x41, 0x08, 0, 0, 0, 42, 0, 0, 2);
	good();
	CHECK(discards == 1 && medium[42 * BLOCK] == 0 && medium[44 * BLOCK] == 's');
	RUN(BLOCK, 0x41, 0, 0, 0, 0, 42, 0, 0, 0);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
}

static void test_unmap(void)
{
	memset(data, 0, 64);
	scsi_put(data, 2, 38);
	scsi_put(data + 2, 2, 32);
	scsi_put(data + 8, 8, 50);
	scsi_put(data + 16, 4, 10);
	scsi_put(data + 24, 8, 70);
	scsi_put(data + 32, 4, 10);
	discards = 0;
	RUN(40, 0x42, [8] = 40);
	good();
	CHECK(discards == 2);
	scsi_put(data + 24, 8, BLOCKS - 5);
	RUN(40, 0x42, [8] = 40);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_LBA_OUT_OF_RANGE);
	CHECK(discards == 2); /* all or nothing */
	RUN(20, 0x42, [8] = 40);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
	lun.medium.discard_granularity = 0;
	RUN(40, 0x42, [8] = 40);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_OPERATION_CODE);
	RUN(4096, 0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0x10, 0);
	CHECK(scsi_get(data, 4) == 8 * (task.row_count - 1));
	lun.medium.discard_granularity = BLOCK;
}

int main(void)
{
	test_table();
	test_inquiry();
	test_capacity();
	test_modes();
	test_opcodes();
	test_forms();
	test_ends();
	test_compare_and_write();
	test_verify();
	test_write_same();
	test_unmap();
	return 0;
}

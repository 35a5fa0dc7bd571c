/* The disk above a backend in memory: what each command answers, and what is refused with which sense. */
#include <errno.h>
#include <string.h>

#include "../../../tests/check.h"
#include "../scsi.h"

#define BLOCK 512u
#define BLOCKS 4096u

static uint8_t medium[BLOCK * BLOCKS], data[1 << 20];
static unsigned flushes, discards;
static int failure;

static int ram_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	(void)context;
	memcpy(buffer, medium + offset, length);
	return failure;
}

static int ram_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	(void)context;
	if (!failure)
		memcpy(medium + offset, buffer, length);
	return failure;
}

static int ram_flush(void *context)
{
	(void)context;
	flushes++;
	return 0;
}

static int ram_discard(void *context, uint64_t length, uint64_t offset)
{
	(void)context, (void)length, (void)offset;
	discards++;
	return 0;
}

static const struct tcmu_plugin ram = {
	.read = ram_read, .write = ram_write, .flush = ram_flush, .discard = ram_discard};
static struct scsi_lun lun = {.plugin = &ram,
			      .medium = {.size = sizeof(medium),
					 .block_size = BLOCK,
					 .physical_block_size = 4096,
					 .discard_granularity = BLOCK,
					 .write_cache = 1},
			      .serial = "0123-serial",
			      .write_cache = 1,
			      .order = PTHREAD_RWLOCK_INITIALIZER};
static struct scsi_task task;

/* The data is in two parts, whose border is not a block's. */
static void run(const uint8_t *cdb, size_t bytes)
{
	static struct iovec iov[2];
	size_t first = bytes > 1000 ? 1000 : bytes / 2;

	iov[0] = (struct iovec){data, first};
	iov[1] = (struct iovec){data + first, bytes - first};
	task = (struct scsi_task){
		.lun = &lun, .cdb = cdb, .iov = iov, .iov_count = 2, .bytes = bytes, .id = 7};
	scsi_run(&task);
}

#define RUN(bytes, ...) run((const uint8_t[16]){__VA_ARGS__}, (bytes))

static void good(void)
{
	CHECK(task.status == SCSI_GOOD);
}

static void refused(unsigned key, unsigned code)
{
	CHECK(task.status == SCSI_CHECK_CONDITION && task.moved == 0);
	CHECK((task.sense[0] & 0x7f) == 0x70 && task.sense[2] == key);
	CHECK(scsi_get(task.sense + 12, 2) == code);
}

static void test_table(void)
{
	uint8_t known[256] = {0};

	for (unsigned i = 0; i < scsi_rows; i++) {
		const struct scsi_row *row = &scsi_table[i];
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
	CHECK(scsi_get(data, 4) == 8 * scsi_rows && task.moved == 4 + 8 * scsi_rows);
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
	CHECK(scsi_get(data, 4) == 8 * (scsi_rows - 1));
	lun.medium.discard_granularity = BLOCK;
}

/* A second disk, with larger blocks, whose plugin is the same. */
static uint8_t other_medium[4096 * 256];
static unsigned copies;
static uint64_t copied_at_most; /* bytes that the plugin copies by itself */

static int other_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	memcpy(buffer, (uint8_t *)context + offset, length);
	return failure;
}

static int other_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	if (!failure)
		memcpy((uint8_t *)context + offset, buffer, length);
	return failure;
}

static int other_flush(void *context)
{
	(void)context;
	flushes++;
	return 0;
}

static int other_copy(void *from, uint64_t from_offset, void *to, uint64_t to_offset,
		      uint64_t length, uint64_t *done)
{
	copies++;
	*done = length < copied_at_most ? length : copied_at_most;
	memcpy((uint8_t *)to + to_offset, (uint8_t *)from + from_offset, *done);
	return *done < length ? -EOPNOTSUPP : 0;
}

static const struct tcmu_plugin same = {
	.read = other_read, .write = other_write, .flush = other_flush, .copy = other_copy};
static struct scsi_lun other = {
	.plugin = &same,
	.context = other_medium,
	.medium = {.size = sizeof(other_medium), .block_size = 4096, .write_cache = 1},
	.serial = "other",
	.write_cache = 1,
	.order = PTHREAD_RWLOCK_INITIALIZER};

struct part {
	unsigned from, to, blocks;
	uint64_t from_lba, to_lba;
	int by_destination; /* else blocks of the source are counted */
};

/* CSCD 0 is `lun`, 1 is `other`, 2 a disk of somebody else. */
static size_t copy_list(uint8_t id, const struct part *parts, unsigned count)
{
	static const uint8_t stranger[SCSI_NAA_BYTES] = {0x60, 1, 2};
	uint8_t *at = data + 16;

	memset(data, 0, 1024);
	data[0] = id;
	scsi_put(data + 2, 2, 3 * 32);
	scsi_put(data + 8, 4, count * 28);
	for (unsigned i = 0; i < 3; i++, at += 32) {
		at[0] = 0xe4;
		at[4] = 1;
		at[5] = 3;
		at[7] = SCSI_NAA_BYTES;
		if (i == 2)
			memcpy(at + 8, stranger, sizeof(stranger));
		else
			scsi_naa(i ? &other : &lun, at + 8);
		scsi_put(at + 29, 3, i ? 4096 : BLOCK);
	}
	for (unsigned i = 0; i < count; i++, at += 28) {
		at[0] = 0x02;
		at[1] = parts[i].by_destination ? 2 : 0;
		scsi_put(at + 2, 2, 24);
		scsi_put(at + 4, 2, parts[i].from);
		scsi_put(at + 6, 2, parts[i].to);
		scsi_put(at + 10, 2, parts[i].blocks);
		scsi_put(at + 12, 8, parts[i].from_lba);
		scsi_put(at + 20, 8, parts[i].to_lba);
	}
	return (size_t)(at - data);
}

static void copy_by(const struct part *parts, unsigned count)
{
	size_t bytes = copy_list(5, parts, count);

	RUN(bytes, 0x83, [12] = (uint8_t)(bytes >> 8), [13] = (uint8_t)bytes);
}

#define COPY(...)                                                                                  \
	copy_by((const struct part[]){__VA_ARGS__},                                                \
		sizeof((const struct part[]){__VA_ARGS__}) / sizeof(struct part))

static void copy_aborted(unsigned segment, unsigned code)
{
	refused(SCSI_COPY_ABORTED, code);
	CHECK(scsi_get(task.sense + 10, 2) == segment);
}

static void pattern(uint8_t *at, size_t length, unsigned seed)
{
	for (size_t i = 0; i < length; i++)
		at[i] = (uint8_t)(i * 7 + i / 251 + seed);
}

static void test_copy_within(void)
{
	pattern(medium, sizeof(medium), 1);
	COPY({0, 0, 64, 100, 1000},
	     {0, 0, 8, 1000, 2000}); /* the second reads what the first wrote */
	good();
	CHECK(memcmp(medium + 1000 * BLOCK, medium + 100 * BLOCK, 64 * BLOCK) == 0);
	CHECK(memcmp(medium + 2000 * BLOCK, medium + 100 * BLOCK, 8 * BLOCK) == 0);
	CHECK(medium[1064 * BLOCK] == (uint8_t)(1064 * BLOCK * 7 + 1064 * BLOCK / 251 + 1));
	RUN(12, 0x84, 0, 5, [13] = 12);
	good();
	CHECK(task.moved == 12 && scsi_get(data, 4) == 8 && data[4] == 1);
	CHECK(scsi_get(data + 5, 2) == 2 && scsi_get(data + 8, 4) == 72 * BLOCK);
	RUN(12, 0x84, 0, 6, [13] = 12); /* a list identifier that was not used */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	/* Carried out again after a death, these would give something else. */
	COPY({0, 0, 64, 100, 130});
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	COPY({0, 0, 8, 100, 1000}, {0, 0, 8, 2000, 104});
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	RUN(12, 0x84, 0, 5, [13] = 12);
	CHECK(data[4] == 2 && scsi_get(data + 5, 2) == 0);
	COPY({0, 0, 0, 100, 1000});
	good();
	RUN(0, 0x83);
	good(); /* no parameter list: nothing is done */
}

static void test_copy_between(void)
{
	COPY({0, 1, 16, 0, 0});
	copy_aborted(0, SCSI_COPY_TARGET_NOT_REACHABLE); /* not known yet */
	scsi_join(&other);
	scsi_join(&lun);
	memset(other_medium, 0, sizeof(other_medium));
	COPY({0, 1, 16, 8, 3});
	good();
	CHECK(memcmp(other_medium + 3 * 4096, medium + 8 * BLOCK, 16 * BLOCK) == 0);
	CHECK(!other_medium[5 * 4096]);
	COPY({0, 1, 1, 8, 9, 1}); /* blocks of the destination are counted */
	good();
	CHECK(memcmp(other_medium + 9 * 4096, medium + 8 * BLOCK, 4096) == 0);
	COPY({0, 1, 8, 8, 3}, {0, 1, 9, 8, 3});
	copy_aborted(1, SCSI_INEXACT_SEGMENT); /* nine blocks of 512 are no blocks of 4096 */
	COPY({1, 2, 1, 0, 0});
	copy_aborted(0, SCSI_COPY_TARGET_NOT_REACHABLE);
	COPY({0, 0, 8, BLOCKS - 7, 0});
	copy_aborted(0, SCSI_LBA_OUT_OF_RANGE);
	COPY({0, 1, 8, 0, UINT64_MAX});
	copy_aborted(0, SCSI_LBA_OUT_OF_RANGE);
	other.medium.read_only = 1;
	COPY({0, 1, 8, 0, 0});
	copy_aborted(0, SCSI_WRITE_PROTECTED);
	other.medium.read_only = 0;
	failure = -EIO;
	COPY({0, 1, 8, 0, 0});
	copy_aborted(0, SCSI_UNRECOVERED_READ_ERROR);
	failure = -EAGAIN;
	COPY({0, 1, 8, 0, 0});
	CHECK(task.status == SCSI_BUSY);
	failure = 0;
	CHECK(!lun.users && !other.users);
}

/* By the plugin, and the rest of it by reading and writing. */
static void test_copy_by_plugin(void)
{
	other.write_cache = 0;
	for (copied_at_most = 0; copied_at_most <= 8 * 4096; copied_at_most += 4096) {
		copies = flushes = 0;
		pattern(other_medium, sizeof(other_medium), (unsigned)copied_at_most);
		COPY({1, 1, 8, 0, 100});
		good();
		CHECK(copies == 1 && flushes == 1);
		CHECK(memcmp(other_medium + 100 * 4096, other_medium, 8 * 4096) == 0);
	}
	other.write_cache = 1;
	copies = 0;
	COPY({0, 1, 8, 0, 0}); /* the plugins are two */
	good();
	CHECK(!copies && memcmp(other_medium, medium, 8 * BLOCK) == 0);
	scsi_leave(&other);
	COPY({0, 1, 8, 0, 0});
	copy_aborted(0, SCSI_COPY_TARGET_NOT_REACHABLE);
	scsi_leave(&lun);
}

static void refused_list(size_t at, uint8_t value, unsigned code)
{
	static const struct part part = {0, 0, 1, 0, 10};
	size_t bytes = copy_list(5, &part, 1);

	data[at] = value;
	RUN(bytes, 0x83, [13] = (uint8_t)bytes);
	refused(SCSI_ILLEGAL_REQUEST, code);
}

static void test_copy_lists(void)
{
	static const struct part part = {0, 0, 1, 0, 10};
	size_t bytes = copy_list(0, &part, 1), first = 16 + 3 * 32;

	RUN(bytes - 1, 0x83, [13] = (uint8_t)bytes);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
	RUN(bytes, 0x83, [13] = 15);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
	RUN(bytes, 0x83, [13] = (uint8_t)(bytes - 1)); /* shorter than its descriptors */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_PARAMETER_LIST_LENGTH_ERROR);
	refused_list(15, 1, SCSI_INLINE_DATA_LENGTH_EXCEEDED);
	refused_list(2, 0xff, SCSI_TOO_MANY_CSCD_DESCRIPTORS);
	refused_list(8, 0xff, SCSI_TOO_MANY_SEGMENT_DESCRIPTORS);
	refused_list(3, 95, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	refused_list(16, 0xe5, SCSI_UNSUPPORTED_CSCD_DESCRIPTOR);
	refused_list(16 + 31, 1, SCSI_INVALID_FIELD_IN_PARAMETER_LIST); /* another block length */
	refused_list(first, 0x04, SCSI_UNSUPPORTED_SEGMENT_DESCRIPTOR);
	refused_list(first + 3, 20, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	refused_list(first + 5, 3, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);     /* of three CSCDs */
	refused_list(first + 10, 0xff, SCSI_INVALID_FIELD_IN_PARAMETER_LIST); /* too long */
	refused_list(1, 0x18,
		     SCSI_INVALID_FIELD_IN_PARAMETER_LIST); /* no identifier, but one is given */
	copy_list(0, &part, 1);
	data[1] = 0x18;
	RUN(bytes, 0x83, [13] = (uint8_t)bytes);
	good();
	RUN(12, 0x84, 0, 0, [13] = 12); /* and so nothing is kept */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	lun.copies[0] = (struct scsi_copied){.id = 9, .state = SCSI_COPY_RUNNING};
	copy_list(9, &part, 1);
	RUN(bytes, 0x83, [13] = (uint8_t)bytes);
	refused(SCSI_ILLEGAL_REQUEST, SCSI_OPERATION_IN_PROGRESS);
	RUN(12, 0x84, 0, 9, [13] = 12);
	CHECK(data[4] == 0); /* in progress */
	lun.copies[0].state = SCSI_COPY_DONE;
	for (unsigned id = 10; id < 10 + SCSI_COPIES_KEPT; id++) {
		copy_list((uint8_t)id, &part, 1);
		RUN(bytes, 0x83, [13] = (uint8_t)bytes);
		good();
	}
	RUN(12, 0x84, 0, 9, [13] = 12); /* others have taken its place */
	refused(SCSI_ILLEGAL_REQUEST, SCSI_INVALID_FIELD_IN_CDB);
	RUN(12, 0x84, 0, 10, [13] = 12);
	CHECK(data[4] == 1);
}

/* The same limits in RECEIVE COPY RESULTS and in the page. */
static void test_copy_parameters(void)
{
	unsigned seen = 0;
	size_t end;

	RUN(64, 0x84, 0x03, [13] = 64);
	good();
	CHECK(scsi_get(data, 4) == task.moved - 4 && data[4] == 1);
	CHECK(scsi_get(data + 8, 2) == SCSI_COPY_CSCDS &&
	      scsi_get(data + 10, 2) == SCSI_COPY_SEGMENTS);
	CHECK(scsi_get(data + 12, 4) == SCSI_COPY_CSCDS * 32 + SCSI_COPY_SEGMENTS * 28);
	CHECK(scsi_get(data + 16, 4) == SCSI_COPY_SEGMENT_BYTES);
	CHECK(data[43] == 2 && data[44] == 0x02 && data[45] == 0xe4);
	RUN(255, 0x12, 1, 0x8f, 0, 255);
	good();
	end = 4 + scsi_get(data + 2, 2);
	CHECK(data[1] == 0x8f && end == task.moved);
	for (size_t at = 4; at < end; at += 4 + scsi_get(data + at + 2, 2)) {
		CHECK(scsi_get(data + at + 2, 2) % 4 == 0);
		switch (scsi_get(data + at, 2)) {
		case 0x0001:
			CHECK(memcmp(data + at + 4, "\x07\x83\x01\x00\x84\x02\x00\x03", 8) == 0);
			seen |= 1;
			break;
		case 0x0004:
			CHECK(scsi_get(data + at + 8, 2) == SCSI_COPY_CSCDS);
			CHECK(scsi_get(data + at + 10, 2) == SCSI_COPY_SEGMENTS);
			seen |= 2;
			break;
		case 0x0008:
			CHECK(memcmp(data + at + 4, "\x02\x02\xe4", 3) == 0);
			seen |= 4;
			break;
		case 0x8001:
			CHECK(scsi_get(data + at + 12, 4) == SCSI_COPY_SEGMENT_BYTES);
			seen |= 8;
			break;
		}
	}
	CHECK(seen == 15);
	RUN(96, 0x12, 0, 0, 0, 96);
	CHECK(data[5] & 0x08); /* 3PC */
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
	test_copy_within();
	test_copy_between();
	test_copy_by_plugin();
	test_copy_lists();
	test_copy_parameters();
	return 0;
}

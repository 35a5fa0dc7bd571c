/* EXTENDED COPY between two disks in memory, and what is remembered of copies. */
#include <errno.h>

#include "disk.h"

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
	test_copy_within();
	test_copy_between();
	test_copy_by_plugin();
	test_copy_lists();
	test_copy_parameters();
	return 0;
}

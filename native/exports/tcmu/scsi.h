/* A SCSI disk (SPC-4, SBC-3) above a plugin: one table says of each command how long its CDB is, which way its
 * data goes, which of its bits mean anything, and who carries it out. What is not in the table ends with CHECK
 * CONDITION, INVALID COMMAND OPERATION CODE. No system call is made here but by the plugin. */
#ifndef SEALSVC_TCMU_SCSI_H
#define SEALSVC_TCMU_SCSI_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "plugin.h"

/* Status codes as SAM-5 has them: scsi/scsi.h has some of them shifted. */
enum scsi_status {
	SCSI_GOOD = 0x00,
	SCSI_CHECK_CONDITION = 0x02,
	SCSI_BUSY = 0x08,
	SCSI_TASK_SET_FULL = 0x28,
};

enum scsi_sense_key {
	SCSI_NO_SENSE = 0x0,
	SCSI_NOT_READY = 0x2,
	SCSI_MEDIUM_ERROR = 0x3,
	SCSI_HARDWARE_ERROR = 0x4,
	SCSI_ILLEGAL_REQUEST = 0x5,
	SCSI_DATA_PROTECT = 0x7,
	SCSI_COPY_ABORTED = 0xa,
	SCSI_MISCOMPARE = 0xe,
};

/* Additional sense code and qualifier. */
enum scsi_sense_code {
	SCSI_OPERATION_IN_PROGRESS = 0x0016,
	SCSI_WRITE_ERROR = 0x0c00,
	SCSI_COPY_TARGET_NOT_REACHABLE = 0x0d02,
	SCSI_UNRECOVERED_READ_ERROR = 0x1100,
	SCSI_PARAMETER_LIST_LENGTH_ERROR = 0x1a00,
	SCSI_MISCOMPARE_DURING_VERIFY = 0x1d00,
	SCSI_INVALID_OPERATION_CODE = 0x2000,
	SCSI_LBA_OUT_OF_RANGE = 0x2100,
	SCSI_INVALID_FIELD_IN_CDB = 0x2400,
	SCSI_INVALID_FIELD_IN_PARAMETER_LIST = 0x2600,
	SCSI_TOO_MANY_CSCD_DESCRIPTORS = 0x2606,
	SCSI_UNSUPPORTED_CSCD_DESCRIPTOR = 0x2607,
	SCSI_TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608,
	SCSI_UNSUPPORTED_SEGMENT_DESCRIPTOR = 0x2609,
	SCSI_INEXACT_SEGMENT = 0x260a,
	SCSI_INLINE_DATA_LENGTH_EXCEEDED = 0x260b,
	SCSI_WRITE_PROTECTED = 0x2700,
	SCSI_SPACE_ALLOCATION_FAILED = 0x2707,
	SCSI_SAVING_NOT_SUPPORTED = 0x3900,
	SCSI_INTERNAL_FAILURE = 0x4400,
};

#define SCSI_SENSE_BYTES 18
#define SCSI_MAX_COMPARE 32	     /* blocks of one COMPARE AND WRITE */
#define SCSI_MAX_UNMAP_RANGES 64     /* of one UNMAP */
#define SCSI_MAX_TRANSFER (8u << 20) /* bytes of one READ or WRITE */

#define SCSI_NAA_BYTES 16
#define SCSI_COPY_CSCDS 8     /* copy sources and destinations of one EXTENDED COPY */
#define SCSI_COPY_SEGMENTS 16 /* of one EXTENDED COPY */
#define SCSI_COPIES_KEPT 16   /* whose results are remembered */
/* Of one segment: all of a command are done well within the time-out of SCSI commands, 30 s. */
#define SCSI_COPY_SEGMENT_BYTES (16u << 20)

enum scsi_copy_state { SCSI_COPY_NONE, SCSI_COPY_RUNNING, SCSI_COPY_DONE, SCSI_COPY_FAILED };

struct scsi_copied {
	uint8_t id; /* the list identifier */
	uint8_t state;
	uint16_t segments; /* that are done whole, and their bytes */
	uint64_t bytes;
};

/* What of a COMPARE AND WRITE has been done, where the next process finds it: its comparison must not be
 * made again over its own writing. `state` points into struct tcmu_note. */
enum scsi_write_state { SCSI_WRITE_NONE, SCSI_WRITE_MATCHED, SCSI_WRITE_DONE };

struct scsi_lun {
	const struct tcmu_plugin *plugin;
	void *context;
	struct tcmu_medium medium;
	char serial[37];
	int write_cache; /* as MODE SELECT set it: off, every write is flushed */
	/* Writes take it shared, COMPARE AND WRITE exclusively. */
	pthread_rwlock_t order;
	uint32_t *write_state, *write_id; /* may be NULL */
	/* xcopy.c: the other disks of this process, and how many copies use this one. */
	struct scsi_lun *next;
	unsigned users, next_copy;
	struct scsi_copied copies[SCSI_COPIES_KEPT];
};

struct scsi_row;

struct scsi_task {
	struct scsi_lun *lun;
	const uint8_t *cdb; /* 16 bytes */
	const struct iovec *iov;
	unsigned iov_count;
	uint64_t bytes; /* of iov */
	uint32_t id;	/* tells commands apart that are outstanding */
	/* Set by scsi_run. */
	const struct scsi_row *rows; /* the table of commands */
	unsigned row_count;
	uint8_t status;
	uint8_t sense[SCSI_SENSE_BYTES];
	uint64_t moved; /* bytes of data for the initiator */
};

/* A disk can be the source or destination of EXTENDED COPY to any disk of the process between these; to its
 * own always. scsi_leave returns when no copy uses it any more. */
void scsi_join(struct scsi_lun *lun);
void scsi_leave(struct scsi_lun *lun);
/* What is remembered of the copy with this list identifier; 0: nothing. */
int scsi_copied(struct scsi_lun *lun, uint8_t id, struct scsi_copied *out);
/* The designator of VPD page 0x83 by which copies name the disk. */
void scsi_naa(const struct scsi_lun *lun, uint8_t *naa);
/* VPD page 0x8F: the bytes after its head. */
size_t scsi_third_party_copy(uint8_t *page);

/* Carries the command out; the answer is in the task. */
void scsi_run(struct scsi_task *task);

enum scsi_direction { SCSI_NONE, SCSI_IN, SCSI_OUT };
enum scsi_flag { SCSI_WRITES = 1, SCSI_RANGE = 2, SCSI_MAY_UNMAP = 4 };

/* Where in the CDB the address and the number of blocks, or the allocation or parameter length, are. */
struct scsi_field {
	uint8_t at, bytes;
};

struct scsi_row {
	uint8_t opcode;
	int16_t action; /* service action, or -1 */
	uint8_t length; /* of the CDB */
	enum scsi_direction direction;
	struct scsi_field lba, count;
	unsigned flags;
	void (*run)(struct scsi_task *task, const struct scsi_row *row);
	uint8_t usage[16]; /* bits that mean anything: REPORT SUPPORTED OPERATION CODES */
};

/* task.c */
uint64_t scsi_get(const uint8_t *at, unsigned bytes); /* big-endian */
void scsi_put(uint8_t *at, unsigned bytes, uint64_t value);
uint64_t scsi_lba(const struct scsi_task *task, const struct scsi_row *row);
uint64_t scsi_count(const struct scsi_task *task, const struct scsi_row *row);
uint64_t scsi_blocks(const struct scsi_lun *lun);

void scsi_check(struct scsi_task *task, enum scsi_sense_key key, enum scsi_sense_code code);
/* MISCOMPARE, and the byte at which it is. */
void scsi_miscompare(struct scsi_task *task, uint64_t at);
void scsi_fail(struct scsi_task *task, int error, int writing);
/* Answers with `length` bytes, or as many of them as the initiator allowed (the row's count). */
void scsi_answer(struct scsi_task *task, const struct scsi_row *row, const uint8_t *data,
		 size_t length);
/* Between the parts of iov, from byte `at` of them on; how many were there. */
size_t scsi_copy_in(const struct scsi_task *task, uint64_t at, void *to, size_t length);
size_t scsi_copy_out(const struct scsi_task *task, uint64_t at, const void *from, size_t length);

/* inquiry.c, parameters.c, opcodes.c, blocks.c, provisioning.c, xcopy.c, copy_results.c */
void scsi_inquiry(struct scsi_task *task, const struct scsi_row *row);
void scsi_nothing(struct scsi_task *task, const struct scsi_row *row);
void scsi_request_sense(struct scsi_task *task, const struct scsi_row *row);
void scsi_capacity_10(struct scsi_task *task, const struct scsi_row *row);
void scsi_capacity_16(struct scsi_task *task, const struct scsi_row *row);
void scsi_mode_sense(struct scsi_task *task, const struct scsi_row *row);
void scsi_mode_select(struct scsi_task *task, const struct scsi_row *row);
void scsi_supported_opcodes(struct scsi_task *task, const struct scsi_row *row);
void scsi_read(struct scsi_task *task, const struct scsi_row *row);
void scsi_write(struct scsi_task *task, const struct scsi_row *row);
void scsi_verify(struct scsi_task *task, const struct scsi_row *row);
void scsi_synchronize(struct scsi_task *task, const struct scsi_row *row);
void scsi_compare_and_write(struct scsi_task *task, const struct scsi_row *row);
void scsi_write_same(struct scsi_task *task, const struct scsi_row *row);
void scsi_unmap(struct scsi_task *task, const struct scsi_row *row);
void scsi_extended_copy(struct scsi_task *task, const struct scsi_row *row);
void scsi_copy_status(struct scsi_task *task, const struct scsi_row *row);
void scsi_copy_parameters(struct scsi_task *task, const struct scsi_row *row);

#endif

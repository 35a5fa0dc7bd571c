/* Where the fields of the shared region are, by the mailbox's version. Version 1 is that of Linux 3.18, which
 * Documentation/target/tcmu-design.rst still describes; version 2 (since 4.2) is that of
 * include/uapi/linux/target_core_user.h. The mailbox is the same in both. */
#ifndef SEALSVC_TCMU_LAYOUT_H
#define SEALSVC_TCMU_LAYOUT_H

#include <stdint.h>

struct tcmu_mailbox_view {
	uint16_t version;
	uint16_t flags;
	uint32_t ring_offset;
	uint32_t ring_size;
	uint32_t head;
	uint8_t padding[48];
	uint32_t tail; /* on a cache line of its own */
};

enum { MAILBOX_OUT_OF_ORDER = 1, MAILBOX_READ_LEN = 2, MAILBOX_TMR = 4 };
enum { OP_PAD, OP_CMD, OP_TMR };
enum { OP_MASK = 7, ENTRY_ALIGN = 8 };
enum { UFLAG_UNKNOWN_OP = 1, UFLAG_READ_LEN = 2 };

struct tcmu_layout {
	uint8_t version;
	uint8_t id;	   /* u16 */
	uint8_t uflags;	   /* u8; 0: there is none */
	uint8_t iov_count; /* u32, the low half of a u64 in version 1 */
	uint8_t bidi;	   /* u32 count; 0: there is none */
	uint8_t cdb;	   /* u64 offset in the region */
	uint8_t iov;
	uint8_t status;	  /* u8 */
	uint8_t read_len; /* u32; 0: there is none */
	uint8_t sense;
	uint8_t smallest; /* entry that can take an answer */
	uint8_t may_flag; /* flags that this version may have */
};

/* Of version 2. Its request is not packed: there is a gap before the CDB's offset. */
enum {
	V2_ID = 4,
	V2_UFLAGS = 7,
	V2_IOV_COUNT = 8,
	V2_BIDI = 12,
	V2_CDB = 24,
	V2_IOV = 48,
	V2_STATUS = 8,
	V2_READ_LEN = 12,
	V2_SENSE = 16,
	V2_SMALLEST = 112,
};

extern const struct tcmu_layout tcmu_layouts[];
extern const unsigned tcmu_layout_count;

#endif

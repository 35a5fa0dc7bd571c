#include "layout.h"

#include <linux/target_core_user.h>
#include <stddef.h>

/* The table has numbers, as it has them for a version whose header is not to be had any more. */
#define IS_AT(row, type, member)                                                                   \
	_Static_assert(offsetof(type, member) == (row), "layout.h has another offset of " #member)
IS_AT(offsetof(struct tcmu_mailbox_view, ring_offset), struct tcmu_mailbox, cmdr_off);
IS_AT(offsetof(struct tcmu_mailbox_view, ring_size), struct tcmu_mailbox, cmdr_size);
IS_AT(offsetof(struct tcmu_mailbox_view, head), struct tcmu_mailbox, cmd_head);
IS_AT(offsetof(struct tcmu_mailbox_view, tail), struct tcmu_mailbox, cmd_tail);
IS_AT(V2_ID, struct tcmu_cmd_entry, hdr.cmd_id);
IS_AT(V2_UFLAGS, struct tcmu_cmd_entry, hdr.uflags);
IS_AT(V2_IOV_COUNT, struct tcmu_cmd_entry, req.iov_cnt);
IS_AT(V2_BIDI, struct tcmu_cmd_entry, req.iov_bidi_cnt);
IS_AT(V2_CDB, struct tcmu_cmd_entry, req.cdb_off);
IS_AT(V2_IOV, struct tcmu_cmd_entry, req.iov);
IS_AT(V2_STATUS, struct tcmu_cmd_entry, rsp.scsi_status);
IS_AT(V2_READ_LEN, struct tcmu_cmd_entry, rsp.read_len);
IS_AT(V2_SENSE, struct tcmu_cmd_entry, rsp.sense_buffer);
_Static_assert(sizeof(struct tcmu_cmd_entry) == V2_SMALLEST, "an entry has another size");

const struct tcmu_layout tcmu_layouts[] = {
	{.version = 1,
	 .id = 4,
	 .cdb = 8,
	 .iov_count = 16,
	 .iov = 24,
	 .status = 8,
	 .sense = 16,
	 .smallest = 112},
	{.version = 2,
	 .id = V2_ID,
	 .uflags = V2_UFLAGS,
	 .iov_count = V2_IOV_COUNT,
	 .bidi = V2_BIDI,
	 .cdb = V2_CDB,
	 .iov = V2_IOV,
	 .status = V2_STATUS,
	 .read_len = V2_READ_LEN,
	 .sense = V2_SENSE,
	 .smallest = V2_SMALLEST,
	 .may_flag = 0xff},
};
const unsigned tcmu_layout_count = sizeof(tcmu_layouts) / sizeof(tcmu_layouts[0]);

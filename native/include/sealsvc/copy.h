/* Moving bytes between files (docs/copies.md). Offsets and lengths are bytes. */
#ifndef SEALSVC_COPY_H
#define SEALSVC_COPY_H

#include <stdint.h>

/* The bytes that were copied, from the start of the range on, without a gap. `error` is the errno that
 * ended the copy; 0 with fewer bytes than asked: a call returned 0. */
struct seal_copied {
	uint64_t bytes;
	int32_t error;
};

struct seal_copy {
	int32_t source, destination;
	uint64_t source_offset, destination_offset, length;
};

struct seal_copied seal_copy_plain(const struct seal_copy *copy);
struct seal_copied seal_copy_range(const struct seal_copy *copy);
struct seal_copied seal_copy_clone(const struct seal_copy *copy);
struct seal_copied seal_copy_dax(const struct seal_copy *copy);
/* O_DIRECT by io_uring, `depth` requests of `block` bytes in flight. Descriptors are opened with
 * O_DIRECT; offsets and length are multiples of what that wants. */
struct seal_copied seal_copy_direct(const struct seal_copy *copy, uint32_t block, uint32_t depth);
/* Zeros, written in place. */
struct seal_copied seal_copy_zeros(int fd, uint64_t offset, uint64_t length);

/* How many bytes are equal, from the start on. */
struct seal_copied seal_copy_compare(const struct seal_copy *copy);

/* Write back, and wait for, the range (sync_file_range); 0 or -errno. */
int seal_write_back(int fd, uint64_t offset, uint64_t length);

/* Give up, for good, what the user for whom a copy is made would not have; 0 or -errno. */
int seal_copy_drop_privileges(void);
/* The calling thread's file accesses count as those of `uid`; 0 or -errno. */
int seal_copy_act_as(uint32_t uid);
uint32_t seal_copy_acts_as(void);

struct seal_nvme_limits {
	uint32_t namespace_id, block, copies; /* block in bytes; copies: the controller has Copy */
	uint32_t range_blocks, total_blocks, ranges;
};

int seal_nvme_limits(int device, struct seal_nvme_limits *out);
/* One Copy command for one namespace, in blocks; 0, -errno, or the NVMe status (> 0). */
int seal_nvme_copy(int device, uint32_t namespace_id, uint64_t source, uint64_t destination,
		   const struct seal_nvme_limits *limits, uint32_t blocks);

struct seal_xcopy_limits {
	uint8_t designator[20]; /* of the designation descriptor: code set, type, -, length, NAA */
	uint32_t block, blocks; /* block in bytes; most blocks in one segment */
};

int seal_xcopy_limits(int device, struct seal_xcopy_limits *out);
/* One EXTENDED COPY (LID1) within the logical unit; 0, -errno, or the SCSI status and sense key. */
int seal_xcopy(int device, const struct seal_xcopy_limits *limits, uint64_t source,
	       uint64_t destination, uint32_t blocks);

#endif

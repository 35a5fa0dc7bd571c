/* NVMe Copy by passthrough (NVM Command Set 1.0, sections 3.2.2 and 4.1.5.1). */
#include "sealsvc/copy.h"

#include <endian.h>
#include <errno.h>
#include <linux/nvme_ioctl.h>
#include <string.h>
#include <sys/ioctl.h>

#define IDENTIFY 0x06
#define COPY 0x19
#define TIMEOUT 30000 /* milliseconds */

static int result_of(int result)
{
	return result < 0 ? -errno : result;
}

static int identify(int device, uint32_t namespace_id, uint32_t what, uint8_t *page)
{
	struct nvme_admin_cmd command = {
		.opcode = IDENTIFY,
		.nsid = namespace_id,
		.addr = (uint64_t)(uintptr_t)page,
		.data_len = 4096,
		.cdw10 = what,
		.timeout_ms = TIMEOUT,
	};
	int result = result_of(ioctl(device, NVME_IOCTL_ADMIN_CMD, &command));

	return result > 0 ? -EIO : result;
}

static uint32_t little(const uint8_t *at, int bytes)
{
	uint32_t value = 0;

	while (bytes--)
		value = value << 8 | at[bytes];
	return value;
}

int seal_nvme_limits(int device, struct seal_nvme_limits *out)
{
	uint8_t page[4096] __attribute__((aligned(4096)));
	int namespace_id = ioctl(device, NVME_IOCTL_ID), error;

	memset(out, 0, sizeof(*out));
	if (namespace_id < 0)
		return -errno;
	out->namespace_id = (uint32_t)namespace_id;
	error = identify(device, 0, 1, page);
	if (error)
		return error;
	out->copies = little(page + 520, 2) >> 8 & 1; /* ONCS, bit 8 */
	error = identify(device, out->namespace_id, 0, page);
	if (error)
		return error;
	out->block = UINT32_C(1) << page[128 + 4 * (page[26] & 0xf) + 2]; /* LBADS of FLBAS */
	/* With metadata the protection information of a block names its old place. */
	if (little(page + 128 + 4 * (page[26] & 0xf), 2))
		out->copies = 0;
	out->range_blocks = little(page + 74, 2);		/* MSSRL */
	out->total_blocks = little(page + 76, 4);		/* MCL */
	out->ranges = out->copies ? (uint32_t)page[80] + 1 : 0; /* MSRC, 0's based */
	return 0;
}

/* Source range descriptor, format 0h. */
struct range {
	uint8_t reserved[8];
	uint64_t first;
	uint16_t blocks; /* 0's based */
	uint8_t rest[14];
};
_Static_assert(sizeof(struct range) == 32, "a descriptor has 32 bytes");

int seal_nvme_copy(int device, uint32_t namespace_id, uint64_t source, uint64_t destination,
		   const struct seal_nvme_limits *limits, uint32_t blocks)
{
	struct range ranges[256] __attribute__((aligned(4096)));
	struct nvme_passthru_cmd command = {
		.opcode = COPY,
		.nsid = namespace_id,
		.addr = (uint64_t)(uintptr_t)ranges,
		.cdw10 = (uint32_t)destination,
		.cdw11 = (uint32_t)(destination >> 32),
		.timeout_ms = TIMEOUT,
	};
	uint32_t count = 0;

	if (!blocks || blocks > limits->total_blocks || !limits->range_blocks)
		return -EINVAL;
	memset(ranges, 0, sizeof(ranges));
	while (blocks) {
		uint32_t part = blocks < limits->range_blocks ? blocks : limits->range_blocks;

		if (count == limits->ranges || count == 256)
			return -EINVAL;
		ranges[count].first = htole64(source);
		ranges[count++].blocks = htole16((uint16_t)(part - 1));
		source += part;
		blocks -= part;
	}
	command.data_len = count * (uint32_t)sizeof(struct range);
	command.cdw12 = count - 1; /* NR, 0's based; format 0h */
	return result_of(ioctl(device, NVME_IOCTL_IO_CMD, &command));
}

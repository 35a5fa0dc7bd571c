/* SCSI EXTENDED COPY (LID1), SPC-4 section 6.4, within one logical unit, by SG_IO. */
#include "sealsvc/copy.h"

#include <errno.h>
#include <scsi/sg.h>
#include <string.h>
#include <sys/ioctl.h>

#define TIMEOUT 60000 /* milliseconds */

/* 0, -errno, or status << 8 | sense key. */
static int command(int device, uint8_t *cdb, uint8_t length, int direction, void *data,
		   uint32_t size)
{
	uint8_t sense[64] = {0};
	struct sg_io_hdr io = {
		.interface_id = 'S',
		.dxfer_direction = direction,
		.cmd_len = length,
		.mx_sb_len = sizeof(sense),
		.dxfer_len = size,
		.dxferp = data,
		.cmdp = cdb,
		.sbp = sense,
		.timeout = TIMEOUT,
	};

	if (ioctl(device, SG_IO, &io) < 0)
		return -errno;
	if (io.host_status || io.driver_status & 0x7)
		return -EIO;
	return io.status ? io.status << 8 | (sense[0] & 0x7f ? sense[2] & 0xf : 0) : 0;
}

static void big(uint8_t *at, uint64_t value, int bytes)
{
	while (bytes--) {
		at[bytes] = (uint8_t)value;
		value >>= 8;
	}
}

static uint32_t read_big(const uint8_t *at)
{
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static int failed(int result)
{
	return result > 0 ? -EOPNOTSUPP : result;
}

/* The 16-byte NAA designator of VPD page 83h that names the logical unit (SPC-4 7.8.6). */
static int find_designator(const uint8_t *page, uint32_t length, uint8_t *out)
{
	for (uint32_t at = 4; at + 4 <= length; at += 4 + page[at + 3]) {
		const uint8_t *found = page + at;

		if (at + 4 + found[3] > length)
			break;
		if ((found[0] & 0xf) == 1 && (found[1] & 0x3f) == 3 && found[3] == 16) {
			memcpy(out, found, 20);
			return 0;
		}
	}
	return -EOPNOTSUPP;
}

static int capacity(int device, struct seal_xcopy_limits *out)
{
	uint8_t cdb[16] = {0x9e, 0x10}, data[32] = {0}; /* READ CAPACITY(16) */
	int error;

	cdb[13] = sizeof(data);
	error = failed(command(device, cdb, 16, SG_DXFER_FROM_DEV, data, sizeof(data)));
	out->block = read_big(data + 8);
	return error ? error : out->block ? 0 : -EIO;
}

int seal_xcopy_limits(int device, struct seal_xcopy_limits *out)
{
	uint8_t page[1024] = {0}, parameters[1024] = {0};
	uint8_t inquiry[6] = {0x12, 1, 0x83};
	uint8_t receive[16] = {0x84, 0x03}; /* RECEIVE COPY OPERATING PARAMETERS */
	int error;

	memset(out, 0, sizeof(*out));
	big(inquiry + 3, sizeof(page), 2);
	error = failed(command(device, inquiry, 6, SG_DXFER_FROM_DEV, page, sizeof(page)));
	if (!error)
		error = find_designator(page,
					((uint32_t)page[2] << 8 | page[3]) + 4 < sizeof(page)
						? ((uint32_t)page[2] << 8 | page[3]) + 4
						: sizeof(page),
					out->designator);
	if (!error)
		error = capacity(device, out);
	if (error)
		return error;
	big(receive + 10, sizeof(parameters), 4);
	error = failed(
		command(device, receive, 16, SG_DXFER_FROM_DEV, parameters, sizeof(parameters)));
	if (error)
		return error;
	/* Bytes 16-19: MAXIMUM SEGMENT LENGTH, in bytes; a segment counts blocks in 16 bits. */
	out->blocks = read_big(parameters + 16) / out->block;
	if (!out->blocks || out->blocks > UINT16_MAX)
		out->blocks = UINT16_MAX;
	return 0;
}

#define HEADER 16
#define TARGET 32
#define SEGMENT 28

int seal_xcopy(int device, const struct seal_xcopy_limits *limits, uint64_t source,
	       uint64_t destination, uint32_t blocks)
{
	uint8_t cdb[16] = {0x83}, list[HEADER + TARGET + SEGMENT] = {0};
	uint8_t *target = list + HEADER, *segment = target + TARGET;

	if (!blocks || blocks > limits->blocks)
		return -EINVAL;
	big(cdb + 10, sizeof(list), 4);
	list[1] = 0x18; /* LIST ID USAGE 11b: no list identifier */
	big(list + 2, TARGET, 2);
	big(list + 8, SEGMENT, 4);
	/* One identification descriptor: source and destination are the same logical unit. */
	target[0] = 0xe4;
	memcpy(target + 4, limits->designator, 20);
	big(target + 29, limits->block, 3);
	/* Block to block (02h). */
	segment[0] = 0x02;
	segment[1] = 0x02; /* DC: both sides count in blocks of the destination */
	big(segment + 2, SEGMENT - 4, 2);
	big(segment + 10, blocks, 2);
	big(segment + 12, source, 8);
	big(segment + 20, destination, 8);
	return command(device, cdb, 16, SG_DXFER_TO_DEV, list, sizeof(list));
}

#include "capability.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

/* struct logical_block_metadata_cap of include/uapi/linux/fs.h, 6.17. */
struct metadata_capability {
	uint32_t flags;
	uint16_t interval;
	uint8_t size;
	uint8_t opaque_size, opaque_offset;
	uint8_t pi_size, pi_offset;
	uint8_t guard_type;
	uint8_t app_size, ref_size, storage_size;
	uint8_t pad;
};

_Static_assert(sizeof(struct metadata_capability) == 16, "LBMD_SIZE_VER0");

#define GET_METADATA_CAPABILITY _IOWR(0x15, 2, struct metadata_capability)
#define CAN_CHECK 1u /* LBMD_PI_CAP_INTEGRITY */

int seal_pi_capability(int device, struct seal_pi_capability *out)
{
	struct metadata_capability found = {0};
	int block;

	memset(out, 0, sizeof(*out));
	if (ioctl(device, BLKSSZGET, &block) < 0 ||
	    ioctl(device, GET_METADATA_CAPABILITY, &found) < 0)
		return -errno;
	*out = (struct seal_pi_capability){
		.checked = (found.flags & CAN_CHECK) != 0,
		.interval = found.size ? found.interval : 0,
		.metadata = found.size,
		.pi_offset = found.pi_offset,
		.pi_size = found.pi_size,
		.guard = found.guard_type,
		.app_size = found.app_size,
		.ref_size = found.ref_size,
		.block = (uint32_t)block,
	};
	return 0;
}

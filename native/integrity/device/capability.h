/* What a block device stores and checks with each interval of its data. */
#ifndef SEALSVC_PI_CAPABILITY_H
#define SEALSVC_PI_CAPABILITY_H

#include <stdint.h>

enum seal_pi_guard {
	SEAL_PI_GUARD_NONE = 0,
	SEAL_PI_GUARD_IP = 1,
	SEAL_PI_GUARD_CRC16 = 2, /* CRC16-T10DIF */
	SEAL_PI_GUARD_CRC64 = 4, /* CRC64-NVME */
};

/* Sizes in bytes. A tuple of `metadata` bytes belongs to each interval; the guard, the application tag
 * and the reference tag lie in it from `pi_offset` on, big-endian and in this order. */
struct seal_pi_capability {
	uint32_t checked;  /* 1: the device itself checks (LBMD_PI_CAP_INTEGRITY) */
	uint32_t interval; /* data that one tuple protects */
	uint32_t metadata;
	uint32_t pi_offset, pi_size;
	uint32_t guard; /* enum seal_pi_guard */
	uint32_t app_size, ref_size;
	uint32_t block; /* logical block of the device */
};

/* FS_IOC_GETLBMD_CAP of an open block device: 0, or -errno (ENOTTY: a kernel before 6.17). `interval` is
 * 0 when the device has no metadata. */
int seal_pi_capability(int device, struct seal_pi_capability *out);

/* 0, or -EOPNOTSUPP: tuples of this layout are neither made nor compared here. */
int seal_pi_supported(const struct seal_pi_capability *layout);

#endif

/* Numbers of the kernel's interface: ioctls, modes and flags of the operations that are judged. */
#ifndef SEAL_NUMBERS_H
#define SEAL_NUMBERS_H

#include "sealsvc/verdict.h"

#define MAY_WRITE 2
#define MAY_READ 4
#define ATTR_SIZE (1u << 3)
#define FMODE_EXEC (1u << 5) /* struct file.f_flags, __FMODE_EXEC */
#define RWF_ATOMIC 0x40	     /* since v6.11 */

enum {
	IORING_OP_WRITE_FIXED = 5,
	IORING_OP_FALLOCATE = 17,
	IORING_OP_WRITE = 23,
	IORING_OP_MADVISE = 25,
};

/* ioctls by type and number: their sizes differ between architectures. */
#define NUMBER(command) ((command)&0xffff)
#define FICLONE 0x9409
#define FICLONERANGE 0x940d
#define FIDEDUPERANGE 0x9436
#define EXT4_MOVE_EXT 0x660f
#define EXT4_SWAP_BOOT 0x6611
#define XFS_RESVSP 0x5828
#define XFS_UNRESVSP 0x5829
#define XFS_RESVSP64 0x582a
#define XFS_UNRESVSP64 0x582b
#define XFS_ZERO_RANGE 0x5839
#define XFS_SWAPEXT 0x586d
#define XFS_EXCHANGE_RANGE 0x5881
#define XFS_COMMIT_RANGE 0x5883
#define LOOP_SET_FD 0x4c00
#define LOOP_CHANGE_FD 0x4c06
#define LOOP_CONFIGURE 0x4c0a

#define FALLOC_KEEP_SIZE 0x01
#define FALLOC_PUNCH_HOLE 0x02
#define FALLOC_COLLAPSE_RANGE 0x08
#define FALLOC_ZERO_RANGE 0x10
#define FALLOC_INSERT_RANGE 0x20
#define FALLOC_UNSHARE_RANGE 0x40
#define FALLOC_WRITE_ZEROES 0x80 /* since v6.17 */

static __always_inline uint32_t fallocate_op(int mode)
{
	switch (mode & ~FALLOC_KEEP_SIZE) {
	case 0:
		return SEAL_OP_ALLOCATE;
	case FALLOC_PUNCH_HOLE:
		return SEAL_OP_PUNCH;
	case FALLOC_ZERO_RANGE:
		return SEAL_OP_ZERO;
	case FALLOC_WRITE_ZEROES:
		return SEAL_OP_WRITE_ZEROES;
	case FALLOC_UNSHARE_RANGE:
		return SEAL_OP_UNSHARE;
	case FALLOC_COLLAPSE_RANGE:
		return SEAL_OP_COLLAPSE;
	case FALLOC_INSERT_RANGE:
		return SEAL_OP_INSERT;
	}
	return SEAL_OP_HIDDEN; /* newer than this: may do anything from there on */
}

#endif

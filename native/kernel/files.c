#include "sealsvc/files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int result_of(long result)
{
	return result < 0 ? -errno : (int)result;
}

int seal_open_beneath(int dirfd, const char *path, int flags)
{
	struct open_how how = {
		.flags = (uint32_t)(flags | O_CLOEXEC),
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};

	return result_of(syscall(SYS_openat2, dirfd, path, &how, sizeof(how)));
}

int seal_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
	int result;

	do {
		result = result_of(fallocate(fd, mode, (off_t)offset, (off_t)length));
	} while (result == -EINTR);
	return result;
}

/* The number is defined with `long`, file systems store an int (fs/ext4/ioctl.c, fs/xfs/xfs_ioctl.c),
 * and FUSE as many bytes as the number says: room for both. */
int seal_generation(int fd, uint32_t *out)
{
	unsigned long room = 0;

	if (ioctl(fd, FS_IOC_GETVERSION, &room) < 0)
		return -errno;
	memcpy(out, &room, sizeof(*out));
	return 0;
}

int seal_fsxattr(int fd, struct seal_xattr *out)
{
	struct fsxattr attr;

	if (ioctl(fd, FS_IOC_FSGETXATTR, &attr) < 0)
		return -errno;
	out->xflags = attr.fsx_xflags;
	out->extsize = attr.fsx_extsize;
	out->nextents = attr.fsx_nextents;
	out->projid = attr.fsx_projid;
	out->cowextsize = attr.fsx_cowextsize;
	return 0;
}

int seal_set_extsize(int fd, uint32_t bytes)
{
	struct fsxattr attr;

	if (ioctl(fd, FS_IOC_FSGETXATTR, &attr) < 0)
		return -errno;
	attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
	attr.fsx_extsize = bytes;
	return result_of(ioctl(fd, FS_IOC_FSSETXATTR, &attr));
}

/* struct xfs_fsop_geom and XFS_IOC_FSGEOMETRY since v5.2 (fs/xfs/libxfs/xfs_fs.h; <xfs/xfs_fs.h> of
 * xfslibs-dev, which is not needed to build). */
struct xfs_geometry {
	uint32_t blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct;
	uint64_t datablocks, rtblocks, rtextents, logstart;
	uint8_t uuid[16];
	uint32_t sunit, swidth;
	int32_t version;
	uint32_t flags, logsectsize, rtsectsize, dirblocksize, logsunit, sick, checked;
	uint64_t reserved[17];
};
_Static_assert(sizeof(struct xfs_geometry) == 256, "the ioctl number holds the size");

#define XFS_FSGEOMETRY _IOR('X', 126, struct xfs_geometry)
#define XFS_GEOMETRY_REFLINK (1 << 20) /* XFS_FSOP_GEOM_FLAGS_REFLINK */

int seal_xfs_geometry(int fd, struct seal_xfs_geometry *out)
{
	struct xfs_geometry geometry;

	if (ioctl(fd, XFS_FSGEOMETRY, &geometry) < 0)
		return -errno;
	out->block_size = geometry.blocksize;
	out->rt_extent_blocks = geometry.rtextsize;
	out->reflink = !!(geometry.flags & XFS_GEOMETRY_REFLINK);
	return 0;
}

int seal_statx_attributes(int fd, uint64_t *attributes)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &stx) < 0)
		return -errno;
	*attributes = stx.stx_attributes & stx.stx_attributes_mask;
	return 0;
}

int seal_pidfd_open(int pid)
{
	return result_of(syscall(SYS_pidfd_open, pid, 0));
}

int seal_pidfd_getfd(int pidfd, int fd)
{
	return result_of(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

static int set_lease(int fd, int type)
{
	int result;

	do {
		result = result_of(fcntl(fd, F_SETLEASE, type));
	} while (result == -EINTR);
	return result;
}

int seal_lease_probe(int fd, int type)
{
	int result = set_lease(fd, type);

	if (result == -EAGAIN)
		return 0;
	if (result < 0)
		return result;
	/* EAGAIN: another thread's probe of the same description has dropped it already. */
	result = set_lease(fd, F_UNLCK);
	return result < 0 && result != -EAGAIN ? result : 1;
}

/* Fills in the lock of the token `id`; l_pid must be 0 (fs/locks.c fcntl_setlk). */
static int token_lock(struct flock *lock, short type, uint64_t id)
{
	if (id >= SEAL_TOKEN_BASE)
		return -EINVAL; /* beyond the largest offset */
	memset(lock, 0, sizeof(*lock));
	lock->l_type = type;
	lock->l_whence = SEEK_SET;
	lock->l_start = (off_t)(SEAL_TOKEN_BASE + id);
	lock->l_len = 1;
	return 0;
}

static int token_change(int fd, short type, uint64_t id)
{
	struct flock lock;
	int error = token_lock(&lock, type, id);

	return error ? error : result_of(fcntl(fd, F_OFD_SETLK, &lock));
}

/* A read lock wants a description that is open for reading, a write lock one open for writing. */
int seal_token_set(int fd, uint64_t id)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	return token_change(fd, (flags & O_ACCMODE) == O_WRONLY ? F_WRLCK : F_RDLCK, id);
}

int seal_token_clear(int fd, uint64_t id)
{
	return token_change(fd, F_UNLCK, id);
}

/* A write lock conflicts with both types; asking for one needs no writable description. */
int seal_token_held(int fd, uint64_t id)
{
	struct flock lock;
	int error = token_lock(&lock, F_WRLCK, id);

	if (error)
		return error;
	if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	return lock.l_type != F_UNLCK;
}

/* 1 and 2 tell an order, 3 that there is none (kernel/kcmp.c). */
int seal_same_description(int pid_a, int fd_a, int pid_b, int fd_b)
{
	long result = syscall(SYS_kcmp, pid_a, pid_b, KCMP_FILE, (long)fd_a, (long)fd_b);

	return result < 0 ? -errno : result == 0;
}

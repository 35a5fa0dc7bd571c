#include "sealsvc/files.h"

#include "sealsvc/cachestat.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/kcmp.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
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

int seal_inode_flags(int fd, uint32_t *out)
{
	unsigned long room = 0; /* as for FS_IOC_GETVERSION */

	if (ioctl(fd, FS_IOC_GETFLAGS, &room) < 0)
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
	attr.fsx_xflags &= ~FS_XFLAG_EXTSIZE;
	if (bytes)
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
	out->inode_size = geometry.inodesize;
	out->rt_extent_blocks = geometry.rtextsize;
	out->flags = geometry.flags;
	memcpy(out->uuid, geometry.uuid, sizeof(out->uuid));
	out->reflink = !!(geometry.flags & XFS_GEOMETRY_REFLINK);
	return 0;
}

/* struct xfs_fs_eofblocks and XFS_IOC_FREE_EOFBLOCKS, since v3.8 (fs/xfs/libxfs/xfs_fs.h). */
struct xfs_eofblocks {
	uint32_t version, flags, uid, gid, prid, pad32;
	uint64_t min_file_size, pad64[12];
};
_Static_assert(sizeof(struct xfs_eofblocks) == 128, "the ioctl number holds the size");

#define XFS_FREE_EOFBLOCKS _IOR('X', 58, struct xfs_eofblocks)
#define XFS_EOFBLOCKS_VERSION 1
#define XFS_EOF_SYNC (1 << 0)
#define XFS_EOF_UID (1 << 1)
#define XFS_EOF_GID (1 << 2)
#define XFS_EOF_MINFILESIZE (1 << 4)

int seal_xfs_free_preallocations(int fd)
{
	struct xfs_eofblocks which = {
		.version = XFS_EOFBLOCKS_VERSION,
		.flags = XFS_EOF_SYNC | XFS_EOF_UID | XFS_EOF_GID | XFS_EOF_MINFILESIZE,
	};
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	which.uid = st.st_uid;
	which.gid = st.st_gid;
	which.min_file_size = (uint64_t)st.st_size;
	return result_of(ioctl(fd, XFS_FREE_EOFBLOCKS, &which));
}

int seal_filesystem_magic(int fd, uint64_t *out)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return -errno;
	*out = (uint64_t)fs.f_type & UINT32_MAX;
	return 0;
}

int seal_sync_filesystem(int fd)
{
	return result_of(syncfs(fd));
}

int64_t seal_dirty_pages(int fd)
{
	struct seal_cache_counts pages;
	int error = seal_cachestat(fd, 0, 0, &pages);

	return error ? error : (int64_t)(pages.dirty + pages.writeback);
}

int64_t seal_cached_pages(int fd, uint64_t offset, uint64_t length)
{
	struct seal_cache_counts pages;
	int error = seal_cachestat(fd, offset, length, &pages);

	return error ? error : (int64_t)pages.cached;
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

/* l_pid must be 0 for locks of descriptions (fs/locks.c fcntl_setlk). */
static struct flock one_byte(short type, uint64_t at)
{
	return (struct flock){
		.l_type = type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)at,
		.l_len = 1,
	};
}

static int change_token(int fd, short type, uint64_t at)
{
	struct flock lock = one_byte(type, at);

	return at > INT64_MAX ? -EINVAL : result_of(fcntl(fd, F_OFD_SETLK, &lock));
}

/* The lock of another description that stands against a write lock there; l_type F_UNLCK: none. */
static int lock_at(int fd, uint64_t at, struct flock *lock)
{
	*lock = one_byte(F_WRLCK, at);
	return at > INT64_MAX ? -EINVAL : result_of(fcntl(fd, F_OFD_GETLK, lock));
}

/* Bytes of tokens are even: the kernel makes one lock of two that touch, and it would be nobody's. */
static uint64_t between(uint64_t from, uint64_t to, uint64_t seed)
{
	return (from + seed * UINT64_C(0x9e3779b97f4a7c15) % (to - from)) & ~UINT64_C(1);
}

#define TOKEN_ATTEMPTS 16

int seal_token_set(int fd, uint64_t *at)
{
	uint64_t wanted = *at, byte = wanted, first;
	struct flock lock;
	struct stat st;
	int error;

	if (fstat(fd, &st) < 0)
		return -errno;
	/* Programs lock the bytes that a file has, and one behind them. */
	first = (uint64_t)st.st_size + 2;
	for (int i = 0; i < TOKEN_ATTEMPTS; i++) {
		error = lock_at(fd, byte, &lock);
		if (error)
			return error;
		if (lock.l_type == F_UNLCK) {
			*at = byte;
			error = change_token(fd, F_RDLCK, byte);
			if (error != -EAGAIN)
				return error;
		}
		if (lock.l_type != F_UNLCK && (uint64_t)lock.l_start <= first)
			break;
		if (lock.l_type != F_UNLCK)
			byte = between(first, (uint64_t)lock.l_start, wanted + (uint64_t)i);
	}
	/* Locked to the end by somebody. A read lock goes together with ours. */
	*at = wanted;
	return change_token(fd, F_RDLCK, wanted);
}

int seal_token_clear(int fd, uint64_t at)
{
	return change_token(fd, F_UNLCK, at);
}

/* "1: OFDLCK ADVISORY  READ  -1 fd:01:131 START END" (fs/locks.c lock_get_status). */
static int is_token(const char *line, const struct stat *st, uint64_t at)
{
	unsigned int major, minor;
	unsigned long inode;
	uint64_t start, end;
	char kind[8];

	if (sscanf(line, "%*d: %7s %*s %*s %*d %x:%x:%lu %" SCNu64 " %" SCNu64, kind, &major,
		   &minor, &inode, &start, &end) != 6)
		return 0;
	return !strcmp(kind, "OFDLCK") && start == at && end == at && inode == st->st_ino &&
	       makedev(major, minor) == st->st_dev;
}

static int look_for_token(FILE *locks, const struct stat *st, uint64_t at)
{
	char line[256];
	int found = 0;

	rewind(locks);
	while (!found && fgets(line, sizeof(line), locks))
		found = is_token(line, st, at);
	return !found && ferror(locks) ? -EIO : found;
}

/* Other locks lie over that byte, and F_OFD_GETLK names one of them. The file is read piece by piece, and
 * locks that end meanwhile move others out of sight: what is not there was looked for several times. */
static int is_token_listed(int fd, uint64_t at)
{
	FILE *locks = fopen("/proc/locks", "re");
	struct stat st;
	int found = 0;

	if (!locks)
		return -errno;
	if (fstat(fd, &st) < 0)
		found = -errno;
	for (int i = 0; i < 3 && !found; i++)
		found = look_for_token(locks, &st, at);
	fclose(locks);
	return found;
}

int seal_token_held(int fd, uint64_t at)
{
	struct flock lock;
	int error = lock_at(fd, at, &lock);

	if (error || lock.l_type == F_UNLCK)
		return error;
	if (lock.l_pid == -1 && (uint64_t)lock.l_start == at && lock.l_len == 1)
		return 1;
	return is_token_listed(fd, at);
}

/* 1 and 2 tell an order, 3 that there is none (kernel/kcmp.c). */
int seal_same_description(int pid_a, int fd_a, int pid_b, int fd_b)
{
	long result = syscall(SYS_kcmp, pid_a, pid_b, KCMP_FILE, (long)fd_a, (long)fd_b);

	return result < 0 ? -errno : result == 0;
}

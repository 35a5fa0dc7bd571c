/* Files: opening them safely, who they are, and what else has hold of them. */
#ifndef SEALSVC_FILES_H
#define SEALSVC_FILES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* openat2(2) of `path`, relative to the directory dirfd, with RESOLVE_BENEATH |
 * RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS. `flags` as for open(2); O_CLOEXEC is added.
 * Returns a descriptor or -errno. */
int seal_open_beneath(int dirfd, const char *path, int flags);

/* fallocate(2) with all its modes (FALLOC_FL_*), begun anew when a signal interrupts it. 0 or -errno. */
int seal_fallocate(int fd, int mode, uint64_t offset, uint64_t length);

/* FS_IOC_GETVERSION: the inode's generation into *out. 0 or -errno (-ENOTTY: none). */
int seal_generation(int fd, uint32_t *out);

/* FS_IOC_GETFLAGS: the inode's FS_*_FL into *out. 0 or -errno. */
int seal_inode_flags(int fd, uint32_t *out);

/* FS_IOC_FSGETXATTR; extsize and cowextsize in bytes. 0 or -errno. */
struct seal_xattr {
	uint32_t xflags, extsize, nextents, projid, cowextsize;
};
int seal_fsxattr(int fd, struct seal_xattr *out);
/* FS_IOC_FSSETXATTR of FS_XFLAG_EXTSIZE with `bytes`, a multiple of the block size; all else stays.
 * 0 or -errno (-EINVAL: XFS takes it only while the file has no extents). ext4 takes it and forgets
 * it: extsize stays 0. */
int seal_set_extsize(int fd, uint32_t bytes);

/* XFS_IOC_FSGEOMETRY: is `fd` on XFS, and with which geometry? 0, or -errno (-ENOTTY: not XFS). */
struct seal_xfs_geometry {
	uint32_t block_size;
	uint32_t rt_extent_blocks;
	uint32_t inode_size; /* bytes */
	int reflink;	     /* XFS_FSOP_GEOM_FLAGS_REFLINK */
	uint32_t flags;	     /* XFS_FSOP_GEOM_FLAGS_* */
	uint8_t uuid[16];
};
int seal_xfs_geometry(int fd, struct seal_xfs_geometry *out);

/* What the inode of an XFS file has at one moment (XFS_IOC_FSBULKSTAT_SINGLE, CAP_SYS_ADMIN): bytes of all its
 * blocks, those of the CoW fork and of delayed allocation among them; the bytes that its
 * metadata (extent tree, extended attributes) take at least and at most; ctime in ns. 0 or -errno; EPERM also on a
 * mount with mapped ids. */
struct seal_xfs_blocks {
	uint64_t bytes, metadata, metadata_most;
	int64_t changed;
};
int seal_xfs_blocks(int fd, struct seal_xfs_blocks *out);

/* XFS_IOC_FREE_EOFBLOCKS for files with the owner, the group and at least the size of fd's: drops
 * preallocations in the CoW fork (and beyond EOF) of each that has no dirty page, no page under
 * writeback, no direct I/O in flight, and is not marked I_DIRTY_PAGES (fs/xfs/xfs_icache.c
 * xfs_inode_free_cowblocks). fsync(2) leaves that mark, syncfs(2) clears it. 0 or -errno. */
int seal_xfs_free_preallocations(int fd);

/* fstatfs(2): f_type (linux/magic.h) into *out. 0 or -errno. */
int seal_filesystem_magic(int fd, uint64_t *out);

/* syncfs(2). 0 or -errno. */
int seal_sync_filesystem(int fd);

/* cachestat(2): dirty pages of the file and those under writeback, or -errno (-ENOSYS before v6.5). */
int64_t seal_dirty_pages(int fd);
/* Pages of `length` bytes (0: to the end) from `offset` that are in the page cache, or -errno. */
int64_t seal_cached_pages(int fd, uint64_t offset, uint64_t length);

/* fallocate(2) with FALLOC_FL_KEEP_SIZE, without CAP_SYS_RESOURCE: whoever has it exceeds quotas
 * (fs/quota/dquot.c ignore_hardlimit). 0 or -errno. */
int seal_allocate(int fd, uint64_t offset, uint64_t length);

/* quotactl_fd(2), Q_GETQUOTA: the bytes that `id` may still allocate on the file system of fd, by
 * the hard limit of quota `type` (USRQUOTA, ...); UINT64_MAX: there is no limit. 0 or -errno. */
int seal_quota_room(int fd, int type, uint32_t id, uint64_t *room);

/* statx(2): the STATX_ATTR_* that the file system knows and that are set. 0 or -errno. */
int seal_statx_attributes(int fd, uint64_t *attributes);

/* pidfd_open(2), pidfd_getfd(2): a descriptor or -errno. */
int seal_pidfd_open(int pid);
int seal_pidfd_getfd(int pidfd, int fd);

/* A momentary F_SETLEASE of `type` (F_RDLCK or F_WRLCK) on fd. 1: the kernel granted it (and it is
 * dropped again), 0: it refused because of other openers (EAGAIN), or -errno. With F_WRLCK a 1
 * proves that no description of the inode other than fd's own exists: no descriptor, in no process
 * and in no socket, and no mapping (fs/locks.c check_conflicting_open). SIGIO must be ignored by the
 * process: an opener that comes within the moment breaks the lease. A lease that the description of
 * fd held before is lost. */
int seal_lease_probe(int fd, int type);

/* The token: an OFD read lock (F_OFD_SETLK) of one byte on the description of `fd`, far behind the end of
 * the file. It lives as long as that description does, in any process, as a descriptor, in flight or
 * mapped, so that another description of the file can ask whether anything of it is left.
 *
 * Other programs' locks may lie over the same byte. set: *at is the byte that is wanted, and then the one
 * that was taken, another one where somebody has locked the former; -EAGAIN: somebody has a write lock on
 * all that lies behind the file's end. held: 1 when a lock of just that byte by a description is there,
 * whatever else is; what the description of `fd` holds itself is not seen. A description that locks or
 * unlocks more than that byte for itself loses its token. 0 or -errno. */
#define SEAL_TOKEN_BASE (UINT64_C(1) << 62)
int seal_token_set(int fd, uint64_t *at);
int seal_token_clear(int fd, uint64_t at);
int seal_token_held(int fd, uint64_t at);

/* kcmp(2) KCMP_FILE: 1 when the two descriptors share one description, 0 when not, -errno. */
int seal_same_description(int pid_a, int fd_a, int pid_b, int fd_b);

#endif

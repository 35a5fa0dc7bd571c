/* Mount namespaces, and what lies under an overlay. */
#ifndef SEALSVC_NAMESPACES_H
#define SEALSVC_NAMESPACES_H

#include <stddef.h>
#include <stdint.h>

/* A mount namespace, by the inode number of its nsfs file, and a task (any thread) that is in it.
 * `whole`: that task is in no chroot, so that its mountinfo has all mounts of the namespace. */
struct seal_mount_namespace {
	uint64_t id;
	int32_t task;
	int32_t whole;
};

/* The mount namespaces of every task, each once: *out is an array that seal_rows_free frees. Returns
 * how many there are, or -errno. Namespaces that no task is in are not found. */
int64_t seal_mount_namespaces(struct seal_mount_namespace **out);

/* The root of an overlay's upper layer: the UUID of its file system (zeros: not told) and its inode
 * number (0: of a file system whose handles we do not read). */
struct seal_upper {
	uint64_t inode;
	uint8_t uuid[16];
};

/* Of the overlay whose root directory is fd (O_PATH will do), as the kernel has it, by
 * name_to_handle_at(2) with AT_HANDLE_FID (v6.6: fs/overlayfs/export.c ovl_encode_fh). 0 or -errno
 * (-EOPNOTSUPP: the overlay gives no such handles; that of an unprivileged user never does). */
int seal_overlay_upper(int fd, struct seal_upper *out);

/* statx(2), STATX_BTIME. 0 or -errno (-EOPNOTSUPP: the file system does not record it). */
struct seal_birth {
	int64_t seconds;
	uint32_t nanoseconds;
};
int seal_birth_time(int fd, struct seal_birth *out);

/* FS_IOC_GETFSUUID. 0 or -errno (-ENOTTY: before v6.9). */
int seal_filesystem_uuid(int fd, uint8_t out[16]);

#endif

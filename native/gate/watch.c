/* Which file systems and files the kernel asks about. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

/* struct statx as of v6.11; older headers lack what we read. */
#ifndef STATX_WRITE_ATOMIC
#define STATX_WRITE_ATOMIC 0x00010000U
#endif
struct statx_atomic {
	uint32_t mask, before[41];
	uint32_t atomic_write_unit_min, atomic_write_unit_max, after[20];
};
_Static_assert(sizeof(struct statx_atomic) == 256, "linux/stat.h");

int seal_gate_arm(struct seal_gate *gate, int fd)
{
	char path[40];

	/* A path, since a super block is marked through one. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (fanotify_mark(gate->arming, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS,
			  AT_FDCWD, path) < 0)
		return -errno;
	if (fanotify_mark(gate->arming, FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_IGNORE_SURV,
			  FAN_PRE_ACCESS, AT_FDCWD, path) < 0)
		return -errno;
	return 0;
}

static int open_path(int fd)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_PATH | O_CLOEXEC);
}

/* Before v6.11 statx(2) does not know of atomic writes, and nor does the kernel. */
static int may_write_atomically(int fd)
{
	struct statx_atomic stx = {.mask = 0};

	if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_WRITE_ATOMIC, &stx) < 0)
		return 1;
	return (stx.mask & STATX_WRITE_ATOMIC) && stx.atomic_write_unit_max;
}

/* Opened with access mode 3: for neither reading nor writing. Such a description counts in neither
 * i_readcount nor i_writecount (fs/open.c do_dentry_open), so it may be kept beside leases. */
static int is_uncounted(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && !(flags & O_PATH) && (flags & O_ACCMODE) == O_ACCMODE;
}

/* What waits there goes on, and nothing is guarded there any more. */
static void remove_file(struct seal_gate *gate, struct file *file)
{
	gate_release_waiters(gate, file);
	gate_forget_pruned(gate, file);
	gate_untouch(gate, file);
	gate_free_file(gate, file);
}

int seal_gate_watch(struct seal_gate *gate, int fd, const struct seal_traits *traits)
{
	int error = 0, added = 0, atomic = may_write_atomically(fd);
	struct file *file;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, st.st_dev, st.st_ino);
	if (!file) {
		file = gate_add_file(gate, &st);
		added = 1;
	}
	if (file) {
		file->traits = *traits;
		file->traits.atomic = (uint32_t)atomic;
	}
	pthread_mutex_unlock(&gate->lock);
	if (!file)
		return -ENOMEM;
	if (!added)
		return 0;
	/* The file is in the table before the first event of it can come. */
	file->path_fd = is_uncounted(fd) ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : open_path(fd);
	error = file->path_fd < 0 ? -errno : gate_mark_file(gate, file->shard, FAN_MARK_ADD, file);
	if (error) {
		pthread_mutex_lock(&gate->lock);
		remove_file(gate, file);
		pthread_mutex_unlock(&gate->lock);
	}
	return error;
}

int seal_gate_unwatch(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file;
	int error = 0;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (!file)
		error = -ENOENT;
	else if (file->guards.count)
		error = -EBUSY;
	else
		error = gate_mark_file(gate, file->shard, FAN_MARK_REMOVE, file);
	/* The mark may have gone with the inode. */
	if (!error || error == -ENOENT) {
		error = file ? 0 : -ENOENT;
		if (file)
			remove_file(gate, file);
	}
	pthread_mutex_unlock(&gate->lock);
	return error;
}

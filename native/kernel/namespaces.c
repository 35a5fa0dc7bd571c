/* Mount namespaces, and what lies under an overlay. */
#include "sealsvc/namespaces.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/vector.h"

struct found {
	struct seal_mount_namespace *at;
	size_t count, room, last;
	int error;
};

static struct seal_mount_namespace *known(struct found *found, uint64_t id)
{
	if (found->last < found->count && found->at[found->last].id == id)
		return &found->at[found->last];
	for (size_t i = 0; i < found->count; i++) {
		if (found->at[i].id == id) {
			found->last = i;
			return &found->at[i];
		}
	}
	return NULL;
}

static struct seal_mount_namespace *add(struct found *found)
{
	struct seal_mount_namespace *next = VECTOR_ADD(found, 64);

	if (next)
		found->last = found->count - 1;
	else
		found->error = -ENOMEM;
	return next;
}

/* Of a task with the namespace's own root, the link reads "/" wherever it is read. Its mountinfo has
 * all mounts; one in a chroot is not shown those outside (fs/proc_namespace.c show_mountinfo). */
static bool has_whole_view(int proc, const char *task)
{
	char path[64], text[2];

	snprintf(path, sizeof(path), "%.40s/root", task);
	return readlinkat(proc, path, text, sizeof(text)) == 1 && text[0] == '/';
}

/* `task` is a directory of /proc. namespaces(7): the link reads "mnt:[NUMBER]". */
static void look(struct found *found, int proc, const char *task, int32_t tid)
{
	struct seal_mount_namespace *at;
	char path[64], text[64];
	ssize_t length;
	uint64_t id;

	snprintf(path, sizeof(path), "%.40s/ns/mnt", task);
	length = readlinkat(proc, path, text, sizeof(text) - 1);
	if (length <= 5)
		return; /* it has ended, or may not be looked at */
	text[length] = '\0';
	id = strtoull(text + 5, NULL, 10);
	at = known(found, id);
	if (!at) {
		at = add(found);
		if (at)
			*at = (struct seal_mount_namespace){id, tid, has_whole_view(proc, task)};
	} else if (!at->whole && has_whole_view(proc, task)) {
		at->task = tid;
		at->whole = 1;
	}
}

static DIR *open_directory(int proc, const char *path)
{
	int fd = openat(proc, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);

	if (!dir && fd >= 0)
		close(fd);
	return dir;
}

/* A thread may have unshared its own. A directory of N threads has N + 2 links (fs/proc/base.c
 * proc_task_getattr): that of a process with one thread is not read. */
static void look_at_threads(struct found *found, int proc, const char *pid)
{
	char path[64];
	struct dirent *entry;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof(path), "%.16s/task", pid);
	if (fstatat(proc, path, &st, 0) < 0 || st.st_nlink <= 3)
		return;
	dir = open_directory(proc, path);
	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.' || !strcmp(entry->d_name, pid))
			continue;
		snprintf(path, sizeof(path), "%.16s/task/%.16s", pid, entry->d_name);
		look(found, proc, path, atoi(entry->d_name));
	}
	if (dir)
		closedir(dir);
}

int64_t seal_mount_namespaces(struct seal_mount_namespace **out)
{
	struct found found = {0};
	DIR *proc = opendir("/proc");
	struct dirent *entry;

	if (!proc)
		return -errno;
	while ((entry = readdir(proc))) {
		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		look(&found, dirfd(proc), entry->d_name, atoi(entry->d_name));
		look_at_threads(&found, dirfd(proc), entry->d_name);
	}
	closedir(proc);
	if (found.error) {
		free(found.at);
		return found.error;
	}
	*out = found.at;
	return (int64_t)found.count;
}

/* fs/overlayfs/overlayfs.h, since v5.9: struct ovl_fh. */
#define OVL_FILEID_V1 0xf8
#define OVL_FH_MAGIC 0xfb
#define OVL_FH_FLAG_PATH_UPPER 0x04

struct overlay_handle {
	uint8_t padding[3];
	uint8_t version, magic, length, flags, type;
	uint8_t uuid[16];
	uint8_t file[];
};

/* linux/exportfs.h; those with 0x80 are XFS's, with a 64-bit inode number (fs/xfs/xfs_export.h). */
#define FILEID_INO32_GEN 1
#define FILEID_INO32_GEN_PARENT 2
#define XFS_64 0x80

#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200
#endif

static int read_upper(const struct overlay_handle *handle, size_t size, struct seal_upper *out)
{
	size_t room = size > sizeof(*handle) ? size - sizeof(*handle) : 0;
	uint32_t narrow;

	if (handle->magic != OVL_FH_MAGIC || !(handle->flags & OVL_FH_FLAG_PATH_UPPER))
		return -EOPNOTSUPP;
	memcpy(out->uuid, handle->uuid, sizeof(out->uuid));
	switch (handle->type) {
	case FILEID_INO32_GEN:
	case FILEID_INO32_GEN_PARENT:
		if (room < sizeof(narrow))
			return -EPROTO;
		memcpy(&narrow, handle->file, sizeof(narrow));
		out->inode = narrow;
		return 0;
	case FILEID_INO32_GEN | XFS_64:
	case FILEID_INO32_GEN_PARENT | XFS_64:
		if (room < sizeof(out->inode))
			return -EPROTO;
		memcpy(&out->inode, handle->file, sizeof(out->inode));
		return 0;
	default:
		out->inode = 0; /* of a file system that no seal is kept on */
		return 0;
	}
}

int seal_overlay_upper(int fd, struct seal_upper *out)
{
	union {
		struct file_handle head;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} handle;
	int mount;

	memset(&handle, 0, sizeof(handle));
	handle.head.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(fd, "", &handle.head, &mount, AT_EMPTY_PATH | AT_HANDLE_FID) < 0)
		return -errno;
	if (handle.head.handle_type != OVL_FILEID_V1 ||
	    handle.head.handle_bytes < sizeof(struct overlay_handle))
		return -EOPNOTSUPP;
	return read_upper((const struct overlay_handle *)handle.head.f_handle,
			  handle.head.handle_bytes, out);
}

int seal_birth_time(int fd, struct seal_birth *out)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME | STATX_INO, &stx) < 0)
		return -errno;
	if (!(stx.stx_mask & STATX_BTIME))
		return -EOPNOTSUPP;
	out->seconds = stx.stx_btime.tv_sec;
	out->nanoseconds = stx.stx_btime.tv_nsec;
	return 0;
}

/* FS_IOC_GETFSUUID, since v6.9 (linux/fs.h). */
struct fs_uuid {
	uint8_t length;
	uint8_t uuid[16];
};
#define GETFSUUID _IOR(0x15, 0, struct fs_uuid)

int seal_filesystem_uuid(int fd, uint8_t out[16])
{
	struct fs_uuid found = {0};

	if (ioctl(fd, GETFSUUID, &found) < 0)
		return -errno;
	if (found.length != sizeof(found.uuid))
		return -EPROTO;
	memcpy(out, found.uuid, sizeof(found.uuid));
	return 0;
}

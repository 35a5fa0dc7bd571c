#include "sealsvc/mappings.h"

#include "vmas.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* The next numeric entry of a directory of /proc, or 0 at its end. */
static int next_number(DIR *dir)
{
	struct dirent *entry;

	while ((entry = readdir(dir)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
			return atoi(entry->d_name);
	return 0;
}

static DIR *open_tasks(int pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	return opendir(path);
}

static int is_gone(int64_t error)
{
	return error == -ENOENT || error == -ESRCH;
}

/* A leader that has exited before its threads has no memory any more; they have. */
static int64_t walk_threads(int pid, vma_visit visit, void *context)
{
	DIR *tasks = open_tasks(pid);
	int64_t seen = 0;
	char path[64];
	int tid;

	if (!tasks)
		return is_gone(-errno) ? 0 : -errno;
	while (seen == 0 && (tid = next_number(tasks)) > 0) {
		if (tid == pid)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d/maps", pid, tid);
		seen = seal_vmas_walk(path, 0, pid, visit, context);
		if (is_gone(seen))
			seen = 0;
	}
	closedir(tasks);
	return seen;
}

/* 0 or -errno. A process that is gone, or has no memory (a kernel thread, a zombie), has nothing. */
static int walk_process(int pid, vma_visit visit, void *context)
{
	char path[40];
	int64_t seen;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	seen = seal_vmas_walk(path, 0, pid, visit, context);
	if (seen == 0 || seen == -ESRCH)
		seen = walk_threads(pid, visit, context);
	return seen >= 0 || is_gone(seen) ? 0 : (int)seen;
}

static int walk_everybody(int (*look)(int pid, void *context), void *context)
{
	DIR *proc = opendir("/proc");
	int error = 0, pid;

	if (!proc)
		return -errno;
	while (!error && (pid = next_number(proc)) > 0)
		error = look(pid, context);
	closedir(proc);
	return error;
}

struct search {
	uint64_t device, inode, start, end;
	struct seal_mapping *out;
	size_t max;
	int64_t count;
};

static int note_mapping(const struct vma *vma, int pid, void *context)
{
	struct search *search = context;
	uint64_t start = vma->offset, end = vma->offset + (vma->end - vma->start);

	if (vma->inode != search->inode || vma->device != search->device)
		return 0;
	if (start < search->start)
		start = search->start;
	if (end > search->end)
		end = search->end;
	if (start >= end)
		return 0;
	if ((size_t)search->count < search->max)
		search->out[search->count] = (struct seal_mapping){
			.pid = pid,
			.shared = (uint16_t)vma->shared,
			.writable = (uint16_t)vma->writable,
			.address = vma->start + (start - vma->offset),
			.offset = start,
			.length = end - start,
		};
	search->count++;
	return 0;
}

/* Security modules and sandboxes can close a process even to CAP_SYS_PTRACE. One such process must
 * not keep every question from being answered, so it is passed over: this fails open. */
static int search_if_allowed(int pid, void *context)
{
	int error = walk_process(pid, note_mapping, context);

	return error == -EACCES || error == -EPERM ? 0 : error;
}

static int process_exists(int pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	return access(path, F_OK) == 0;
}

int64_t seal_mappings(int pid, uint64_t device, uint64_t inode, uint64_t start, uint64_t length,
		      struct seal_mapping *out, size_t max)
{
	struct search search = {
		.device = device,
		.inode = inode,
		.start = start,
		.end = length > UINT64_MAX - start ? UINT64_MAX : start + length,
		.out = out,
		.max = max,
	};
	int error;

	if (pid && !process_exists(pid))
		return -ESRCH;
	error = pid ? walk_process(pid, note_mapping, &search)
		    : walk_everybody(search_if_allowed, &search);
	return error ? error : search.count;
}

struct roll {
	uint64_t device, inode;
	int except_pid;
	struct seal_opener *out;
	size_t max;
	int64_t count;
};

static void note_opener(struct roll *roll, int pid, int fd, uint32_t flags)
{
	if ((size_t)roll->count < roll->max)
		roll->out[roll->count] = (struct seal_opener){pid, fd, flags};
	roll->count++;
}

/* AT_STATX_DONT_SYNC: a dead NFS server behind somebody's descriptor must not stop the walk. */
static int is_inode(int fds, const char *name, const struct roll *roll)
{
	struct statx stx;

	if (statx(fds, name, AT_STATX_DONT_SYNC, STATX_INO, &stx) < 0)
		return 0;
	return stx.stx_ino == roll->inode &&
	       makedev(stx.stx_dev_major, stx.stx_dev_minor) == roll->device;
}

/* The flags in proc_pid_fdinfo(5), or -errno. */
static int64_t flags_of(const char *task, const char *fd)
{
	char path[80], text[512], *at;
	ssize_t n;
	int info;

	snprintf(path, sizeof(path), "%s/fdinfo/%.12s", task, fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return -errno;
	n = read(info, text, sizeof(text) - 1);
	close(info);
	if (n < 0)
		return -ESRCH;
	text[n] = '\0';
	at = strstr(text, "flags:");
	return at ? (int64_t)strtoul(at + strlen("flags:"), NULL, 8) : -EPROTO;
}

/* Descriptors in the table of one task, named by its directory in /proc. */
static void list_table(struct roll *roll, int pid, const char *task)
{
	struct dirent *entry;
	char path[64];
	DIR *fds;

	snprintf(path, sizeof(path), "%s/fd", task);
	fds = opendir(path);
	if (!fds)
		return;
	while ((entry = readdir(fds))) {
		int64_t flags;

		if (entry->d_name[0] == '.' || !is_inode(dirfd(fds), entry->d_name, roll))
			continue;
		flags = flags_of(task, entry->d_name);
		if (flags >= 0 && !(flags & O_PATH))
			note_opener(roll, pid, atoi(entry->d_name), (uint32_t)flags);
	}
	closedir(fds);
}

/* Without CONFIG_KCMP every table counts as its own, and descriptors are named once per thread. */
static int have_one_table(int tid_a, int tid_b)
{
	return syscall(SYS_kcmp, tid_a, tid_b, KCMP_FILES, 0L, 0L) == 0;
}

/* Threads share the table of descriptors, unless one has left it (unshare(CLONE_FILES)); a leader
 * that has exited before its threads has none. */
static void list_descriptors(struct roll *roll, int pid)
{
	DIR *tasks = open_tasks(pid);
	int tid, walked = 0;
	char path[48];

	if (!tasks)
		return;
	while ((tid = next_number(tasks)) > 0) {
		if (walked && have_one_table(walked, tid))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
		list_table(roll, pid, path);
		walked = tid;
	}
	closedir(tasks);
}

static int note_mapper(const struct vma *vma, int pid, void *context)
{
	struct roll *roll = context;

	if (vma->inode != roll->inode || vma->device != roll->device)
		return 0;
	note_opener(roll, pid, -1, vma->shared && vma->writable ? O_RDWR : O_RDONLY);
	return 1;
}

/* A process that may not be looked into cannot be named: the list is for people, no proof. */
static int list_process(int pid, void *context)
{
	struct roll *roll = context;
	int64_t before = roll->count;

	if (pid == roll->except_pid)
		return 0;
	list_descriptors(roll, pid);
	if (roll->count == before)
		walk_process(pid, note_mapper, roll);
	return 0;
}

int64_t seal_openers(uint64_t device, uint64_t inode, int except_pid, struct seal_opener *out,
		     size_t max)
{
	struct roll roll = {
		.device = device,
		.inode = inode,
		.except_pid = except_pid,
		.out = out,
		.max = max,
	};
	int error = walk_everybody(list_process, &roll);

	return error ? error : roll.count;
}

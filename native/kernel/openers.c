#include "sealsvc/mappings.h"

#include "processes.h"
#include "walk.h"

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

struct roll {
	const struct walk *walk;
	struct walk_rows *rows;
	int error;
};

static void note_opener(struct roll *roll, int pid, int fd, uint32_t flags)
{
	struct seal_opener *row = seal_walk_add(roll->rows);

	if (row)
		*row = (struct seal_opener){pid, fd, flags};
	else
		roll->error = -ENOMEM;
}

/* AT_STATX_DONT_SYNC: a dead NFS server behind somebody's descriptor must not stop the walk. */
static int is_inode(int fds, const char *name, const struct roll *roll)
{
	struct statx stx;

	if (statx(fds, name, AT_STATX_DONT_SYNC, STATX_INO, &stx) < 0)
		return 0;
	return stx.stx_ino == roll->walk->inode &&
	       makedev(stx.stx_dev_major, stx.stx_dev_minor) == roll->walk->device;
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
	DIR *tasks = seal_open_tasks(pid);
	int tid, walked = 0;
	char path[48];

	if (!tasks)
		return;
	while ((tid = seal_next_number(tasks)) > 0) {
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

	if (vma->inode != roll->walk->inode || vma->device != roll->walk->device)
		return 0;
	note_opener(roll, pid, -1, vma->shared && vma->writable ? O_RDWR : O_RDONLY);
	return 1;
}

static int list_process(const struct walk *walk, int pid, int by_text, struct walk_rows *rows)
{
	struct roll roll = {walk, rows, 0};
	size_t before = rows->count;

	if (pid == walk->except_pid)
		return 0;
	list_descriptors(&roll, pid);
	if (!roll.error && rows->count == before)
		seal_process_walk(pid, by_text, note_mapper, &roll);
	return roll.error;
}

/* A process that may not be looked into cannot be named: the list is for people, no proof. */
static int pass_over(int pid, int error, struct walk_rows *rows)
{
	(void)pid, (void)error, (void)rows;
	return 0;
}

int64_t seal_openers(uint64_t device, uint64_t inode, int except_pid, struct seal_opener **out)
{
	struct walk walk = {
		.row_size = sizeof(**out),
		.device = device,
		.inode = inode,
		.except_pid = except_pid,
		.look = list_process,
		.unknown = pass_over,
	};
	struct walk_rows rows;
	int error = seal_walk(&walk, 0, &rows);

	*out = NULL;
	if (error) {
		free(rows.at);
		return error;
	}
	*out = (struct seal_opener *)(void *)rows.at;
	return (int64_t)rows.count;
}

#include "sealsvc/mappings.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* A line of maps is at most a path of PATH_MAX bytes, each perhaps escaped as \ooo. */
#define TEXT_ROOM 65536

/* struct procmap_query and PROCMAP_QUERY since v6.11 (include/uapi/linux/fs.h). */
struct map_query {
	uint64_t size, flags, address;
	uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
	uint32_t dev_major, dev_minor, name_size, build_id_size;
	uint64_t name, build_id;
};
#define MAP_QUERY _IOWR('f', 17, struct map_query)
#define MAP_QUERY_WRITABLE 0x02
#define MAP_QUERY_SHARED 0x08
#define MAP_QUERY_OR_NEXT 0x10
#define MAP_QUERY_FILE_BACKED 0x20

/* The device is the super block's, which is st_dev of stat(2) on the file systems that can be sealed.
 * On btrfs and overlayfs the two differ and nothing would be found: they are refused before. */
struct vma {
	uint64_t start, end, offset, inode, device;
	int shared, writable;
};

/* Returns non-zero to end the walk. */
typedef int (*vma_visit)(const struct vma *vma, int pid, void *context);

/* The walks return how many VMAs they have seen (those without a file are not all counted), or
 * -errno. What a process maps anew or moves (mremap) behind the walk's back is missed: the answer
 * holds for a process that stands still. */
static int64_t walk_by_query(int maps, int pid, vma_visit visit, void *context)
{
	struct map_query query = {
		.size = sizeof(query),
		.flags = MAP_QUERY_OR_NEXT | MAP_QUERY_FILE_BACKED,
	};
	int64_t seen = 0;

	while (ioctl(maps, MAP_QUERY, &query) == 0) {
		struct vma vma = {
			.start = query.vma_start,
			.end = query.vma_end,
			.offset = query.vma_offset,
			.inode = query.inode,
			.device = makedev(query.dev_major, query.dev_minor),
			.shared = !!(query.vma_flags & MAP_QUERY_SHARED),
			.writable = !!(query.vma_flags & MAP_QUERY_WRITABLE),
		};

		seen++;
		if (visit(&vma, pid, context))
			return seen;
		query.address = query.vma_end;
	}
	return errno == ENOENT || errno == ESRCH ? seen : -errno;
}

static const char *parse_number(const char *at, unsigned int base, uint64_t *out)
{
	uint64_t number = 0;

	for (;; at++) {
		unsigned int digit = (unsigned int)*at - '0';

		if (digit > 9)
			digit = (unsigned int)*at - 'a' + 10;
		if (digit >= base)
			break;
		number = number * base + digit;
	}
	*out = number;
	return at + 1; /* the separator */
}

/* proc_pid_maps(5): "start-end rwxs offset major:minor inode path". The caller ends it with '\n'. */
static void parse_line(const char *at, struct vma *vma)
{
	uint64_t major, minor;

	at = parse_number(at, 16, &vma->start);
	at = parse_number(at, 16, &vma->end);
	vma->writable = at[1] == 'w';
	vma->shared = at[3] == 's';
	at = parse_number(at + 5, 16, &vma->offset);
	at = parse_number(at, 16, &major);
	at = parse_number(at, 16, &minor);
	vma->device = makedev((unsigned int)major, (unsigned int)minor);
	parse_number(at, 10, &vma->inode);
}

/* Visits the complete lines of text[0, size); returns the bytes they take. *seen is negated when the
 * visitor ends the walk. */
static size_t visit_lines(const char *text, size_t size, int pid, vma_visit visit, void *context,
			  int64_t *seen)
{
	const char *at = text, *end;

	while ((end = memchr(at, '\n', size - (size_t)(at - text)))) {
		struct vma vma;

		parse_line(at, &vma);
		at = end + 1;
		++*seen;
		if (vma.inode && visit(&vma, pid, context)) {
			*seen = -*seen;
			break;
		}
	}
	return (size_t)(at - text);
}

static int64_t walk_by_text(int maps, int pid, vma_visit visit, void *context)
{
	char *text = malloc(TEXT_ROOM);
	size_t held = 0;
	int64_t seen = 0;
	ssize_t n;

	if (!text)
		return -ENOMEM;
	while ((n = read(maps, text + held, TEXT_ROOM - held)) > 0) {
		size_t done;

		held += (size_t)n;
		done = visit_lines(text, held, pid, visit, context, &seen);
		held -= done;
		if (seen < 0 || held == TEXT_ROOM)
			break;
		memmove(text, text + done, held);
	}
	if (n < 0)
		seen = errno == ESRCH ? seen : -errno;
	else if (seen < 0)
		seen = -seen;
	else if (n > 0)
		seen = -EPROTO;
	free(text);
	return seen;
}

static int64_t walk_maps(const char *path, int pid, vma_visit visit, void *context)
{
	int maps = open(path, O_RDONLY | O_CLOEXEC);
	int64_t seen;

	if (maps < 0)
		return -errno;
	seen = walk_by_query(maps, pid, visit, context);
	if (seen == -ENOTTY)
		seen = walk_by_text(maps, pid, visit, context);
	close(maps);
	return seen;
}

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
		seen = walk_maps(path, pid, visit, context);
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
	seen = walk_maps(path, pid, visit, context);
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
			.shared = (uint32_t)vma->shared,
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

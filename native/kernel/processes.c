#include "processes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/vector.h"

int seal_next_number(DIR *dir)
{
	struct dirent *entry;

	while ((entry = readdir(dir)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9')
			return atoi(entry->d_name);
	return 0;
}

DIR *seal_open_tasks(int pid)
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
static int64_t walk_threads(int pid, int by_text, vma_visit visit, void *context)
{
	DIR *tasks = seal_open_tasks(pid);
	int64_t seen = 0;
	char path[64];
	int tid;

	if (!tasks)
		return is_gone(-errno) ? 0 : -errno;
	while (seen == 0 && (tid = seal_next_number(tasks)) > 0) {
		if (tid == pid)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%d/maps", pid, tid);
		seen = seal_vmas_walk(path, 0, by_text, pid, visit, context);
		if (is_gone(seen))
			seen = 0;
	}
	closedir(tasks);
	return seen;
}

int seal_process_walk(int pid, int by_text, vma_visit visit, void *context)
{
	char path[40];
	int64_t seen;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	seen = seal_vmas_walk(path, 0, by_text, pid, visit, context);
	if (seen == 0 || seen == -ESRCH)
		seen = walk_threads(pid, by_text, visit, context);
	return seen >= 0 || is_gone(seen) ? 0 : (int)seen;
}

static int by_number(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return x < y ? -1 : x > y;
}

static int add_pid(struct seal_pids *pids, int pid)
{
	int *next = VECTOR_ADD(pids, 512);

	if (!next)
		return -ENOMEM;
	*next = pid;
	return 0;
}

int seal_pids_new(struct seal_pids *pids, size_t known)
{
	DIR *proc = opendir("/proc");
	int error = 0, pid;

	if (!proc)
		return -errno;
	if (known)
		qsort(pids->at, known, sizeof(*pids->at), by_number);
	while (!error && (pid = seal_next_number(proc)) > 0)
		if (!known || !bsearch(&pid, pids->at, known, sizeof(pid), by_number))
			error = add_pid(pids, pid);
	closedir(proc);
	return error;
}

#include "sealsvc/procfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static ssize_t read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, text, size - 1);
	if (n < 0)
		n = -errno;
	else
		text[n] = '\0';
	close(fd);
	return n;
}

static uint64_t number_after(const char *text, const char *key)
{
	const char *at = strstr(text, key);

	return at ? strtoull(at + strlen(key), NULL, 10) : 0;
}

/* stat(5): "PID (COMM) STATE ..."; COMM may hold anything, so the last parenthesis counts. */
static int parse_stat(const char *text, struct seal_task *out)
{
	const char *open = strchr(text, '('), *close = strrchr(text, ')'), *at;
	size_t length;

	if (!open || !close || close < open || close[1] == '\0')
		return -EPROTO;
	length = (size_t)(close - open - 1);
	if (length > sizeof(out->comm) - 1)
		length = sizeof(out->comm) - 1;
	memcpy(out->comm, open + 1, length);
	out->state = close[2];
	at = close + 2;
	for (int field = 3; field < 22 && at; field++)
		at = strchr(at + 1, ' ');
	out->start_time = at ? strtoull(at, NULL, 10) : 0;
	return 0;
}

int seal_task_read(int32_t tid, struct seal_task *out)
{
	char path[64], text[4096];
	ssize_t n;

	memset(out, 0, sizeof(*out));
	/* The stat of a thread: that of /proc/TID adds up all threads of the process (do_task_stat). */
	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", tid, tid);
	n = read_file(path, text, sizeof(text));
	if (n < 0)
		return (int)n;
	if (parse_stat(text, out) < 0)
		return -EPROTO;
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	n = read_file(path, text, sizeof(text));
	if (n < 0)
		return (int)n;
	out->tgid = (int32_t)number_after(text, "\nTgid:");
	out->uid = (uint32_t)number_after(text, "\nUid:");
	return 0;
}

int seal_task_threads(int32_t pid, int32_t *out, size_t max)
{
	char path[40];
	struct dirent *entry;
	size_t count = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		if (count < max)
			out[count] = atoi(entry->d_name);
		count++;
	}
	closedir(dir);
	return (int)count;
}

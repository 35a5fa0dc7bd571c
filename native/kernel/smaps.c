#include "smaps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A line is at most a path of PATH_MAX bytes, each perhaps escaped as \ooo. */
#define TEXT_ROOM 65536

/* The walk stops behind the last area that is asked about: the kernel visits the pages of every area
 * that it shows, and offers no way to begin in the middle. */
struct smaps {
	const struct vma *areas;
	size_t count;
	size_t next; /* the first area that has not been seen */
	int inside;  /* the lines are of areas[next] */
};

/* "sf" among the two-letter words of proc_pid_smaps(5): VM_SYNC. */
static int has_sync(const char *at, const char *end)
{
	for (; end - at >= 3; at++)
		if (at[0] == ' ' && at[1] == 's' && at[2] == 'f')
			return 1;
	return 0;
}

/* The first line of an area; those of its fields begin with a capital letter. */
static int enter_area(struct smaps *smaps, const char *line)
{
	const struct vma *wanted = &smaps->areas[smaps->next];
	uint64_t start, end;

	seal_parse_number(seal_parse_number(line, 16, &start), 16, &end);
	smaps->inside = start == wanted->start && end == wanted->end;
	return !smaps->inside && start >= wanted->start ? -EAGAIN : 0;
}

/* Returns 0 to go on, 1 when the answer is smaps->next, or -errno. */
static int read_line(struct smaps *smaps, const char *line, const char *end)
{
	static const char flags[] = "VmFlags:";

	if (*line < 'A' || *line > 'Z')
		return enter_area(smaps, line);
	if (!smaps->inside || strncmp(line, flags, sizeof(flags) - 1) != 0)
		return 0;
	if (smaps->areas[smaps->next].shared && !has_sync(line + sizeof(flags) - 1, end))
		return 1;
	smaps->inside = 0;
	return ++smaps->next == smaps->count;
}

static int read_lines(struct smaps *smaps, const char *text, size_t size, size_t *done)
{
	const char *at = text, *end;
	int result = 0;

	while (!result && (end = memchr(at, '\n', size - (size_t)(at - text)))) {
		result = read_line(smaps, at, end);
		at = end + 1;
	}
	*done = (size_t)(at - text);
	return result;
}

static int read_smaps(struct smaps *smaps, int fd, char *text)
{
	size_t held = 0, done;
	int result = 0;
	ssize_t n;

	while ((n = read(fd, text + held, TEXT_ROOM - held)) > 0) {
		held += (size_t)n;
		result = read_lines(smaps, text, held, &done);
		if (result)
			return result;
		held -= done;
		if (held == TEXT_ROOM)
			return -EPROTO;
		memmove(text, text + done, held);
	}
	return n < 0 && errno != ESRCH ? -errno : -EAGAIN;
}

int64_t seal_smaps_unsynced(const char *task, const struct vma *areas, size_t count)
{
	struct smaps smaps = {.areas = areas, .count = count};
	char path[72], *text;
	int fd, result;

	if (!count)
		return 0;
	snprintf(path, sizeof(path), "%s/smaps", task);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	text = malloc(TEXT_ROOM);
	result = text ? read_smaps(&smaps, fd, text) : -ENOMEM;
	free(text);
	close(fd);
	return result < 0 ? result : (int64_t)smaps.next;
}

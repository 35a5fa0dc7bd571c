#include "vmas.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
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

static int64_t walk_by_query(int maps, uint64_t from, int pid, vma_visit visit, void *context)
{
	struct map_query query = {
		.size = sizeof(query),
		.flags = MAP_QUERY_OR_NEXT | MAP_QUERY_FILE_BACKED,
		.address = from,
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

const char *seal_parse_number(const char *at, unsigned int base, uint64_t *out)
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

	at = seal_parse_number(at, 16, &vma->start);
	at = seal_parse_number(at, 16, &vma->end);
	vma->writable = at[1] == 'w';
	vma->shared = at[3] == 's';
	at = seal_parse_number(at + 5, 16, &vma->offset);
	at = seal_parse_number(at, 16, &major);
	at = seal_parse_number(at, 16, &minor);
	vma->device = makedev((unsigned int)major, (unsigned int)minor);
	seal_parse_number(at, 10, &vma->inode);
}

/* Visits the complete lines of text[0, size); returns the bytes they take. *seen is negated when the
 * visitor ends the walk. */
static size_t visit_lines(const char *text, size_t size, uint64_t from, int pid, vma_visit visit,
			  void *context, int64_t *seen)
{
	const char *at = text, *end;

	while ((end = memchr(at, '\n', size - (size_t)(at - text)))) {
		struct vma vma;

		parse_line(at, &vma);
		at = end + 1;
		++*seen;
		if (vma.inode && vma.end > from && visit(&vma, pid, context)) {
			*seen = -*seen;
			break;
		}
	}
	return (size_t)(at - text);
}

static int64_t walk_by_text(int maps, uint64_t from, int pid, vma_visit visit, void *context)
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
		done = visit_lines(text, held, from, pid, visit, context, &seen);
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

int64_t seal_vmas_walk(const char *path, uint64_t from, int by_text, int pid, vma_visit visit,
		       void *context)
{
	int maps = open(path, O_RDONLY | O_CLOEXEC);
	int64_t seen = -ENOTTY;

	if (maps < 0)
		return -errno;
	if (!by_text)
		seen = walk_by_query(maps, from, pid, visit, context);
	if (seen == -ENOTTY)
		seen = walk_by_text(maps, from, pid, visit, context);
	close(maps);
	return seen;
}

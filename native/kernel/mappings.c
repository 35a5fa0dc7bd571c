#include "sealsvc/mappings.h"

#include "processes.h"
#include "walk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct search {
	const struct walk *walk;
	struct walk_rows *rows;
	int error;
};

static int note_mapping(const struct vma *vma, int pid, void *context)
{
	struct search *search = context;
	const struct walk *walk = search->walk;
	uint64_t start = vma->offset, end = vma->offset + (vma->end - vma->start);
	struct seal_mapping *row;

	if (vma->inode != walk->inode || vma->device != walk->device)
		return 0;
	if (start < walk->start)
		start = walk->start;
	if (end > walk->end)
		end = walk->end;
	if (start >= end)
		return 0;
	row = seal_walk_add(search->rows);
	if (!row) {
		search->error = -ENOMEM;
		return 1;
	}
	*row = (struct seal_mapping){
		.pid = pid,
		.shared = (uint16_t)vma->shared,
		.writable = (uint16_t)vma->writable,
		.address = vma->start + (start - vma->offset),
		.offset = start,
		.length = end - start,
	};
	return 0;
}

static int search_process(const struct walk *walk, int pid, int by_text, struct walk_rows *rows)
{
	struct search search = {walk, rows, 0};
	int error = seal_process_walk(pid, by_text, note_mapping, &search);

	return error ? error : search.error;
}

/* Security modules can close a process even to CAP_SYS_PTRACE, and it can keep its maps from being read.
 * It may map all that was asked about. */
static int note_unknown(int pid, int error, struct walk_rows *rows)
{
	struct seal_mapping *row = seal_walk_add(rows);

	if (!row)
		return -ENOMEM;
	row->pid = pid;
	row->error = error;
	return 0;
}

static int process_exists(int pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	return access(path, F_OK) == 0;
}

int64_t seal_mappings(int pid, uint64_t device, uint64_t inode, uint64_t start, uint64_t length,
		      struct seal_mapping **out)
{
	struct walk walk = {
		.row_size = sizeof(**out),
		.device = device,
		.inode = inode,
		.start = start,
		.end = length > UINT64_MAX - start ? UINT64_MAX : start + length,
		.look = search_process,
		.unknown = note_unknown,
	};
	struct walk_rows rows;
	int error;

	*out = NULL;
	if (pid && !process_exists(pid))
		return -ESRCH;
	error = seal_walk(&walk, pid, &rows);
	if (error) {
		free(rows.at);
		return error;
	}
	*out = (struct seal_mapping *)(void *)rows.at;
	return (int64_t)rows.count;
}

void seal_rows_free(void *rows)
{
	free(rows);
}

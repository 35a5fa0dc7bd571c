#include "pages.h"
#include "smaps.h"

#include "base/vector.h"
#include "sealsvc/procfs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A holder decides how often and how sparsely it maps a file: not how long we look. */
#define MOST_AREAS (1 << 20)
#define MOST_BYTES (UINT64_C(1) << 46)
#define TASK_ROOM 48
#define ATTEMPTS 3

/* What a process maps of the range, in order of address. `task` is the directory of one that has its
 * memory. */
struct areas {
	const struct seal_mapping_question *question;
	char task[TASK_ROOM];
	struct vma *at;
	size_t count, room;
	uint64_t bytes;
	int error;
};

static int is_file(const struct seal_mapping_question *q, const struct vma *vma)
{
	return vma->inode == q->inode && vma->device == q->device;
}

static uint64_t end_offset(const struct vma *vma)
{
	return vma->offset + (vma->end - vma->start);
}

static int overlaps(const struct seal_mapping_question *q, const struct vma *vma)
{
	return vma->offset < q->start + q->length && end_offset(vma) > q->start;
}

static int keep(struct areas *areas, const struct vma *vma)
{
	struct vma *next = VECTOR_ADD(areas, 64);

	if (!next)
		return -ENOMEM;
	*next = *vma;
	areas->bytes += vma->end - vma->start;
	return areas->count > MOST_AREAS || areas->bytes > MOST_BYTES ? -E2BIG : 0;
}

static int visit(const struct vma *vma, int pid, void *context)
{
	struct areas *areas = context;
	const struct seal_mapping_question *q = areas->question;

	(void)pid;
	if (q->want & SEAL_WANT_ADDRESS) {
		if (vma->start >= q->address + q->length)
			return 1;
	} else if (!is_file(q, vma) || !overlaps(q, vma)) {
		return 0;
	}
	areas->error = keep(areas, vma);
	return areas->error;
}

/* A leader that has exited before its threads has no memory any more; they have. */
static void find_task(int pid, char *task)
{
	struct seal_task found;
	int32_t threads[64];
	int count;

	snprintf(task, TASK_ROOM, "/proc/%d", pid);
	if (seal_task_read(pid, &found) < 0 || found.state != 'Z')
		return;
	count = seal_task_threads(pid, threads, 64);
	for (int i = 0; i < count && i < 64; i++) {
		if (threads[i] == pid || seal_task_read(threads[i], &found) < 0 ||
		    found.state == 'Z')
			continue;
		snprintf(task, TASK_ROOM, "/proc/%d/task/%d", pid, threads[i]);
		return;
	}
}

static int is_gone(int64_t error)
{
	return error == -ENOENT || error == -ESRCH;
}

static int collect(struct areas *areas)
{
	const struct seal_mapping_question *q = areas->question;
	uint64_t from = q->want & SEAL_WANT_ADDRESS ? q->address : 0;
	char path[TASK_ROOM + 8];
	int64_t seen;

	find_task(q->pid, areas->task);
	snprintf(path, sizeof(path), "%s/maps", areas->task);
	seen = seal_vmas_walk(path, from, 0, q->pid, visit, areas);
	if (areas->error)
		return areas->error;
	return seen < 0 && !is_gone(seen) ? (int)seen : 0;
}

/* From `address` on, without a gap, and each byte where the one before it says. */
static int cover_from_address(const struct areas *areas, struct seal_mapping_answer *out)
{
	const struct seal_mapping_question *q = areas->question;
	uint64_t at = q->address, end = at + q->length;

	for (size_t i = 0; i < areas->count; i++) {
		const struct vma *vma = &areas->at[i];
		uint64_t offset = q->start + (at - q->address), found;

		if (vma->start > at)
			break;
		found = vma->offset + (at - vma->start);
		if (!is_file(q, vma)) {
			out->found_device = vma->device;
			return seal_failed(out, SEAL_CHECK_INODE, at, offset, q->inode, vma->inode);
		}
		if (!vma->shared)
			return seal_failed(out, SEAL_CHECK_SHARED, at, offset, 0, 0);
		if (found != offset)
			return seal_failed(out, SEAL_CHECK_OFFSET, at, offset, offset, found);
		at = vma->end;
	}
	if (at < end)
		return seal_failed(out, SEAL_CHECK_COVERAGE, at, q->start + (at - q->address), 0,
				   0);
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	uint64_t x = ((const struct vma *)a)->offset, y = ((const struct vma *)b)->offset;

	return x < y ? -1 : x > y;
}

/* The byte at `offset` is in no shared area: is it in a private one? */
static int fail_coverage(const struct areas *areas, uint64_t offset,
			 struct seal_mapping_answer *out)
{
	for (size_t i = 0; i < areas->count; i++) {
		const struct vma *vma = &areas->at[i];

		if (vma->offset <= offset && end_offset(vma) > offset)
			return seal_failed(out, SEAL_CHECK_SHARED,
					   vma->start + (offset - vma->offset), offset, 0, 0);
	}
	return seal_failed(out, SEAL_CHECK_COVERAGE, 0, offset, 0, 0);
}

/* All shared areas together. */
static int cover_anywhere(const struct areas *areas, struct seal_mapping_answer *out)
{
	const struct seal_mapping_question *q = areas->question;
	struct vma *sorted = malloc((areas->count + 1) * sizeof(*sorted));
	uint64_t at = q->start, end = at + q->length;

	if (!sorted)
		return -ENOMEM;
	if (areas->count)
		memcpy(sorted, areas->at, areas->count * sizeof(*sorted));
	qsort(sorted, areas->count, sizeof(*sorted), by_offset);
	for (size_t i = 0; i < areas->count && sorted[i].offset <= at; i++)
		if (sorted[i].shared && end_offset(&sorted[i]) > at)
			at = end_offset(&sorted[i]);
	free(sorted);
	return at < end ? fail_coverage(areas, at, out) : 0;
}

static int judge_sync(const struct areas *areas, struct seal_mapping_answer *out)
{
	const struct seal_mapping_question *q = areas->question;
	int64_t first = seal_smaps_unsynced(areas->task, areas->at, areas->count);
	const struct vma *vma;
	uint64_t offset;

	if (first < 0 || (size_t)first == areas->count)
		return first < 0 ? (int)first : 0;
	vma = &areas->at[first];
	offset = vma->offset < q->start ? q->start : vma->offset;
	return seal_failed(out, SEAL_CHECK_SYNC, vma->start + (offset - vma->offset), offset, 0, 0);
}

static int judge_pages(const struct areas *areas, struct page_walk *walk)
{
	const struct seal_mapping_question *q = areas->question;
	uint64_t end = q->start + q->length;
	int error = 0;

	for (size_t i = 0; i < areas->count && !error && !walk->answer->check; i++) {
		const struct vma *vma = &areas->at[i];
		uint64_t from = vma->offset < q->start ? q->start : vma->offset;
		uint64_t to = end_offset(vma) > end ? end : end_offset(vma);

		if (!vma->shared)
			continue;
		walk->answer->areas++;
		error = seal_pages_judge(walk, vma->start + (from - vma->offset), from, to - from);
	}
	return error;
}

static int judge(const struct areas *areas, struct seal_mapping_answer *out)
{
	const struct seal_mapping_question *q = areas->question;
	struct page_walk walk = {
		.question = q,
		.answer = out,
		.page = (uint64_t)sysconf(_SC_PAGESIZE),
	};
	char path[TASK_ROOM + 8];
	int error;

	error = q->want & SEAL_WANT_ADDRESS ? cover_from_address(areas, out)
					    : cover_anywhere(areas, out);
	if (!error && !out->check && q->want & SEAL_WANT_SYNC)
		error = judge_sync(areas, out);
	if (error || out->check)
		return error;
	snprintf(path, sizeof(path), "%s/pagemap", areas->task);
	walk.pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (walk.pagemap < 0)
		return -errno;
	out->scanned = !(q->want & SEAL_READ_ENTRIES);
	error = judge_pages(areas, &walk);
	close(walk.pagemap);
	return error;
}

static int are_equal(const struct areas *a, const struct areas *b)
{
	return a->count == b->count &&
	       (!a->count || memcmp(a->at, b->at, a->count * sizeof(*a->at)) == 0);
}

/* The areas are walked through again at the end: what was judged must still be there. */
static int attempt(const struct seal_mapping_question *question, struct seal_mapping_answer *out)
{
	struct areas before = {.question = question}, after = {.question = question};
	int error = collect(&before);

	memset(out, 0, sizeof(*out));
	if (!error)
		error = judge(&before, out);
	if (!error)
		error = collect(&after);
	if (!error && !are_equal(&before, &after))
		error = -EAGAIN;
	free(before.at);
	free(after.at);
	return is_gone(error) ? -EAGAIN : error;
}

static int is_whole_pages(const struct seal_mapping_question *q)
{
	uint64_t part = (uint64_t)sysconf(_SC_PAGESIZE) - 1;

	return q->length && !((q->start | q->length | q->address) & part) &&
	       q->start + q->length > q->start && q->address + q->length > q->address;
}

int seal_mapping_validate(const struct seal_mapping_question *question,
			  struct seal_mapping_answer *out)
{
	int error = -EAGAIN;

	if (!is_whole_pages(question))
		return -EINVAL;
	for (int i = 0; i < ATTEMPTS && error == -EAGAIN; i++)
		error = attempt(question, out);
	return error;
}

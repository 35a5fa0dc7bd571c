#include "pages.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define HUGE (UINT64_C(2) << 20)
#define HUGE_DOWN(at) ((at) & ~(HUGE - 1))
#define HUGE_UP(at) HUGE_DOWN((at) + HUGE - 1)

/* Documentation/admin-guide/mm/pagemap.rst. The place of a page is 0 for those without
 * CAP_SYS_ADMIN in the first user namespace, since v4.2. */
#define ENTRY_PRESENT (UINT64_C(1) << 63)
#define ENTRY_FRAME ((UINT64_C(1) << 55) - 1)
#define ENTRIES 8192

/* struct page_region, struct pm_scan_arg and PAGEMAP_SCAN since v6.7 (include/uapi/linux/fs.h). */
struct region {
	uint64_t start, end, categories;
};
struct scan {
	uint64_t size, flags, start, end, walk_end, out, out_room, max_pages;
	uint64_t inverted, mask, any_of, returned;
};
#define SCAN _IOWR('f', 16, struct scan)
#define CATEGORY_PRESENT (1 << 3)
#define CATEGORY_HUGE (1 << 6)
#define REGIONS 512

/* The kernel keeps the process from changing its mappings during one scan: not for long. */
#define SCAN_BYTES (UINT64_C(1) << 30)

/* One area. Addresses become offsets in the file by adding `to_offset`; `extent` is the one that was
 * needed last. */
struct stretch {
	struct page_walk *walk;
	uint64_t to_offset;
	size_t extent;
};

static int wants(const struct stretch *s, uint32_t what)
{
	return !!(s->walk->question->want & what);
}

/* The part of [from, to) in whole aligned 2 MiB of the range begins here; `to` when there is none. */
static uint64_t first_huge(const struct stretch *s, uint64_t from, uint64_t to)
{
	const struct seal_mapping_question *q = s->walk->question;
	uint64_t begin = HUGE_UP(q->start), end = HUGE_DOWN(q->start + q->length);
	uint64_t offset = from + s->to_offset;

	if (offset < begin)
		offset = begin;
	return offset < end && offset - s->to_offset < to ? offset - s->to_offset : to;
}

static int fail(const struct stretch *s, uint32_t check, uint64_t at, uint64_t expected,
		uint64_t found)
{
	return seal_failed(s->walk->answer, check, at, at + s->to_offset, expected, found);
}

static int judge_absent(struct stretch *s, uint64_t from, uint64_t to)
{
	uint64_t huge;

	if (from >= to)
		return 0;
	if (wants(s, SEAL_WANT_PRESENT))
		return fail(s, SEAL_CHECK_PRESENT, from, 0, 0);
	huge = first_huge(s, from, to);
	if (wants(s, SEAL_WANT_HUGE) && huge < to)
		return fail(s, SEAL_CHECK_HUGE, huge, 0, 0);
	return 0;
}

/* The extent that holds the byte at `offset`, or NULL. They are asked for in order. */
static const struct seal_extent *extent_at(struct stretch *s, uint64_t offset)
{
	const struct seal_mapping_question *q = s->walk->question;

	while (s->extent < q->extent_count &&
	       q->extents[s->extent].logical + q->extents[s->extent].length <= offset)
		s->extent++;
	if (s->extent == q->extent_count || q->extents[s->extent].logical > offset)
		return NULL;
	return &q->extents[s->extent];
}

/* Where the byte at `at` must be; *until is the address up to which that goes on contiguously. */
static uint64_t place_of(struct stretch *s, uint64_t at, uint64_t *until)
{
	uint64_t offset = at + s->to_offset;
	const struct seal_extent *extent = extent_at(s, offset);

	if (!extent)
		return 0;
	*until = extent->logical + extent->length - s->to_offset;
	return s->walk->question->base + extent->physical + (offset - extent->logical);
}

/* [from, to) is one contiguous piece of memory that begins at `found`. */
static int judge_piece(struct stretch *s, uint64_t from, uint64_t to, uint64_t found)
{
	struct seal_mapping_answer *answer = s->walk->answer;

	for (uint64_t at = from, until = to; at < to && !answer->check; at = until) {
		uint64_t expected = place_of(s, at, &until);

		if (!expected || expected != found + (at - from))
			return fail(s, SEAL_CHECK_PLACE, at, expected, found + (at - from));
		if (until > to)
			until = to;
		answer->placed += (until - at) / s->walk->page;
	}
	return 0;
}

/* Entries of pagemap for the pages from `at` on. Returns how many were read, or -errno. */
static int64_t read_entries(struct stretch *s, uint64_t at, uint64_t *entries, uint64_t count)
{
	uint64_t page = s->walk->page;
	ssize_t n = pread(s->walk->pagemap, entries, count * sizeof(*entries),
			  (off_t)(at / page * sizeof(*entries)));

	if (n < 0)
		return -errno;
	s->walk->answer->entries += (uint64_t)n / sizeof(*entries);
	return n / (ssize_t)sizeof(*entries);
}

/* How many entries from the first on are of one contiguous piece of memory (or all absent). */
static uint64_t run_of(const uint64_t *entries, uint64_t count)
{
	const uint64_t kept = ENTRY_PRESENT | ENTRY_FRAME, first = entries[0] & kept;
	uint64_t n = 1;

	if (first & ENTRY_PRESENT)
		while (n < count && (entries[n] & kept) == first + n)
			n++;
	else
		while (n < count && !(entries[n] & ENTRY_PRESENT))
			n++;
	return n;
}

/* The place of what an entry begins, to the end of [from, to). */
static int judge_place(struct stretch *s, uint64_t entry, uint64_t from, uint64_t to)
{
	struct seal_mapping_answer *answer = s->walk->answer;

	if (!wants(s, SEAL_WANT_PLACE) || answer->hidden)
		return 0;
	if (!(entry & ENTRY_FRAME)) {
		answer->hidden = 1;
		return 0;
	}
	return judge_piece(s, from, to, (entry & ENTRY_FRAME) * s->walk->page);
}

/* `found` as in the answer: whether huge pages can be told at all. */
static int fail_huge(const struct stretch *s, uint64_t from, uint64_t to)
{
	uint64_t huge = first_huge(s, from, to);

	if (wants(s, SEAL_WANT_HUGE) && huge < to)
		return fail(s, SEAL_CHECK_HUGE, huge, 0, !s->walk->answer->scanned);
	return 0;
}

static void judge_entries(struct stretch *s, uint64_t from, const uint64_t *entries, uint64_t count)
{
	struct seal_mapping_answer *answer = s->walk->answer;
	uint64_t page = s->walk->page, n;

	for (uint64_t i = 0; i < count && !answer->check; i += n) {
		uint64_t at = from + i * page, end;

		n = run_of(entries + i, count - i);
		end = at + n * page;
		if (!(entries[i] & ENTRY_PRESENT)) {
			judge_absent(s, at, end);
			continue;
		}
		answer->present += n;
		fail_huge(s, at, end);
		if (!answer->check)
			judge_place(s, entries[i], at, end);
	}
}

static int judge_small_pages(struct stretch *s, uint64_t from, uint64_t to)
{
	uint64_t entries[ENTRIES], page = s->walk->page;

	while (from < to && !s->walk->answer->check) {
		uint64_t wanted = (to - from) / page;
		int64_t n = read_entries(s, from, entries, wanted < ENTRIES ? wanted : ENTRIES);

		if (n <= 0)
			return n ? (int)n : -EAGAIN; /* the process has gone */
		judge_entries(s, from, entries, (uint64_t)n);
		from += (uint64_t)n * page;
	}
	return 0;
}

/* [from, to) is all or part of a huge page: one entry tells for it. */
static int judge_huge_page(struct stretch *s, uint64_t from, uint64_t to)
{
	struct seal_mapping_answer *answer = s->walk->answer;
	uint64_t entry;
	int64_t n = read_entries(s, from, &entry, 1);

	if (n <= 0)
		return n ? (int)n : -EAGAIN;
	if (!(entry & ENTRY_PRESENT))
		return judge_absent(s, from, to); /* gone since the scan */
	answer->present += (to - from) / s->walk->page;
	answer->huge += to - from == HUGE;
	return judge_place(s, entry, from, to);
}

/* Returns how many regions there are at scan->out, or -errno (-ENOTTY: there is no PAGEMAP_SCAN). */
static int scan_pages(struct stretch *s, struct scan *scan)
{
	int n = ioctl(s->walk->pagemap, SCAN, scan);

	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	return scan->walk_end <= scan->start ? -EAGAIN : n;
}

/* Is the page at `at` part of a huge one? */
static int is_huge(struct stretch *s, uint64_t at)
{
	struct region region;
	struct scan scan = {
		.size = sizeof(scan),
		.start = at,
		.end = at + s->walk->page,
		.out = (uint64_t)(uintptr_t)&region,
		.out_room = 1,
		.mask = CATEGORY_PRESENT | CATEGORY_HUGE,
		.returned = CATEGORY_HUGE,
	};

	return scan_pages(s, &scan);
}

/* Small pages are read each: to scan them as well would only cost. */
static int judge_places(struct stretch *s, uint64_t from, uint64_t to)
{
	int error = 0;

	while (from < to && !s->walk->answer->check && !error) {
		uint64_t next = HUGE_DOWN(from) + HUGE;
		int huge = is_huge(s, from);

		if (huge < 0)
			return huge;
		if (next > to)
			next = to;
		error = huge ? judge_huge_page(s, from, next) : judge_small_pages(s, from, next);
		from = next;
	}
	return error;
}

static void judge_region(struct stretch *s, const struct region *region)
{
	struct seal_mapping_answer *answer = s->walk->answer;
	uint64_t from = region->start, to = region->end;

	answer->present += (to - from) / s->walk->page;
	if (!(region->categories & CATEGORY_HUGE))
		fail_huge(s, from, to);
	else if (HUGE_UP(from) < HUGE_DOWN(to))
		answer->huge += (HUGE_DOWN(to) - HUGE_UP(from)) / HUGE;
}

static int judge_presence(struct stretch *s, uint64_t from, uint64_t to)
{
	struct region regions[REGIONS];
	struct scan scan = {
		.size = sizeof(scan),
		.end = to,
		.out = (uint64_t)(uintptr_t)regions,
		.out_room = REGIONS,
		.mask = CATEGORY_PRESENT,
		.returned = CATEGORY_PRESENT | CATEGORY_HUGE,
	};

	while (from < to && !s->walk->answer->check) {
		int n;

		scan.start = from;
		n = scan_pages(s, &scan);
		if (n < 0)
			return n;
		for (int i = 0; i < n && !s->walk->answer->check; i++) {
			judge_absent(s, from, regions[i].start);
			if (!s->walk->answer->check)
				judge_region(s, &regions[i]);
			from = regions[i].end;
		}
		if (!s->walk->answer->check)
			judge_absent(s, from, scan.walk_end);
		from = scan.walk_end;
	}
	return 0;
}

static int judge_window(struct stretch *s, uint64_t from, uint64_t to)
{
	if (!s->walk->answer->scanned)
		return judge_small_pages(s, from, to);
	return wants(s, SEAL_WANT_PLACE) ? judge_places(s, from, to) : judge_presence(s, from, to);
}

/* The first extent that ends behind `offset`: where looking for its place begins. */
static size_t find_extent(const struct seal_mapping_question *q, uint64_t offset)
{
	size_t low = 0, high = q->extent_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (q->extents[middle].logical + q->extents[middle].length <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int seal_pages_judge(struct page_walk *walk, uint64_t address, uint64_t offset, uint64_t length)
{
	struct stretch s = {
		.walk = walk,
		.to_offset = offset - address,
		.extent = find_extent(walk->question, offset),
	};
	uint64_t end = address + length;
	int error = 0;

	walk->answer->pages += length / walk->page;
	while (address < end && !walk->answer->check && !error) {
		uint64_t to = end - address > SCAN_BYTES ? HUGE_DOWN(address + SCAN_BYTES) : end;

		error = judge_window(&s, address, to);
		if (error == -ENOTTY && walk->answer->scanned) {
			walk->answer->scanned = 0;
			error = 0;
			continue;
		}
		address = to;
	}
	return error;
}

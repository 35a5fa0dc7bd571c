/* The maps of the loaded programs: entries, the barrier, events. */
#include "bpf_internal.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "sealsvc/verdict.h"

int seal_bpf_identify(int fd, struct seal_bpf_file *out)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	out->device = (uint64_t)major(st.st_dev) << 20 | minor(st.st_dev);
	out->inode = st.st_ino;
	return 0;
}

/* Entries */

static uint64_t next_version(struct seal_bpf *bpf)
{
	uint64_t now = bpf_now();

	bpf->version = now > bpf->version ? now : bpf->version + 1;
	return bpf->version;
}

static uint32_t any_exclusive(const struct seal_bpf_entry *entry)
{
	for (uint32_t i = 0; i < entry->count; i++)
		if (entry->ranges[i].exclusive)
			return 1;
	return 0;
}

static void set_bit(struct seal_bpf *bpf, const struct seal_bpf_file *file)
{
	uint64_t bit = file->inode % SEAL_BPF_BITS;

	if (!bpf->sealed[bit]++)
		__atomic_fetch_or(&bpf->control->sealed[bit / 64], UINT64_C(1) << bit % 64,
				  __ATOMIC_SEQ_CST);
}

static void clear_bit(struct seal_bpf *bpf, const struct seal_bpf_file *file)
{
	uint64_t bit = file->inode % SEAL_BPF_BITS;

	if (!--bpf->sealed[bit])
		__atomic_fetch_and(&bpf->control->sealed[bit / 64], ~(UINT64_C(1) << bit % 64),
				   __ATOMIC_SEQ_CST);
}

/* Counters and bits are raised before and lowered after: the programs look at them first. */
static int replace(struct seal_bpf *bpf, const struct seal_bpf_file *file,
		   struct seal_bpf_entry *entry, int is_new)
{
	uint32_t was = entry->exclusive, is = any_exclusive(entry);
	int result = 0;

	entry->version = next_version(bpf);
	entry->exclusive = is;
	if (is_new) {
		set_bit(bpf, file);
		__atomic_fetch_add(&bpf->control->entries, 1, __ATOMIC_SEQ_CST);
	}
	if (is && !was)
		__atomic_fetch_add(&bpf->control->exclusive, 1, __ATOMIC_SEQ_CST);
	if (entry->count)
		result = bpf_map_update_elem(bpf->files, file, entry, BPF_ANY);
	else
		result = bpf_map_delete_elem(bpf->files, file);
	if ((result && is && !was) || (!result && was && !is))
		__atomic_fetch_sub(&bpf->control->exclusive, 1, __ATOMIC_SEQ_CST);
	if ((result && is_new) || (!result && !entry->count)) {
		__atomic_fetch_sub(&bpf->control->entries, 1, __ATOMIC_SEQ_CST);
		clear_bit(bpf, file);
	}
	return result;
}

static uint32_t position(const struct seal_bpf_entry *entry, uint64_t token)
{
	uint32_t i = 0;

	while (i < entry->count && entry->ranges[i].token != token)
		i++;
	return i;
}

/* An entry of a file that had the inode's number before is nobody's any more. */
static int read_entry(struct seal_bpf *bpf, const struct seal_bpf_file *file,
		      struct seal_bpf_entry *entry)
{
	if (!bpf_map_lookup_elem(bpf->files, file, entry))
		return 1;
	memset(entry, 0, sizeof(*entry));
	return 0;
}

int seal_bpf_put(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint32_t generation,
		 uint32_t reflink, const struct seal_bpf_range *range)
{
	struct seal_bpf_entry entry;
	int found, result = -ENOSPC;
	uint32_t at;

	SCOPED_LOCK(&bpf->lock);
	found = read_entry(bpf, file, &entry);
	if (generation && entry.generation && entry.generation != generation)
		entry.count = 0;
	entry.generation = generation;
	entry.reflink = reflink;
	at = position(&entry, range->token);
	if (at < SEAL_BPF_RANGES) {
		entry.ranges[at] = *range;
		if (at == entry.count)
			entry.count++;
		result = replace(bpf, file, &entry, !found);
	}
	return result;
}

int seal_bpf_take(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint64_t token)
{
	struct seal_bpf_entry entry;
	int result = -ENOENT;
	uint32_t at;

	SCOPED_LOCK(&bpf->lock);
	if (read_entry(bpf, file, &entry)) {
		at = position(&entry, token);
		if (at < entry.count) {
			entry.ranges[at] = entry.ranges[--entry.count];
			result = replace(bpf, file, &entry, 0);
		}
	}
	return result;
}

/* Calls `visit` for each entry; what comes or goes meanwhile may be missed. */
static void each_entry(struct seal_bpf *bpf,
		       void (*visit)(void *context, const struct seal_bpf_file *file,
				     const struct seal_bpf_entry *entry),
		       void *context)
{
	struct seal_bpf_file file, *last = NULL;
	struct seal_bpf_entry entry;

	SCOPED_LOCK(&bpf->lock);
	while (!bpf_map_get_next_key(bpf->files, last, &file)) {
		if (read_entry(bpf, &file, &entry))
			visit(context, &file, &entry);
		last = &file;
	}
}

struct listing {
	struct seal_bpf_seal *out;
	size_t max;
	int64_t count;
};

static void list_entry(void *context, const struct seal_bpf_file *file,
		       const struct seal_bpf_entry *entry)
{
	struct listing *listing = context;

	for (uint32_t i = 0; i < entry->count; i++, listing->count++)
		if ((size_t)listing->count < listing->max)
			listing->out[listing->count] =
				(struct seal_bpf_seal){*file, entry->ranges[i].token};
}

int64_t seal_bpf_list(struct seal_bpf *bpf, struct seal_bpf_seal *out, size_t max)
{
	struct listing listing = {out, max, 0};

	each_entry(bpf, list_entry, &listing);
	return listing.count;
}

struct census {
	struct seal_bpf *bpf;
	uint32_t entries, exclusive;
};

static void count_entry(void *context, const struct seal_bpf_file *file,
			const struct seal_bpf_entry *entry)
{
	struct census *census = context;

	census->entries++;
	census->exclusive += entry->exclusive;
	census->bpf->sealed[file->inode % SEAL_BPF_BITS]++;
}

static void take_census(struct seal_bpf *bpf)
{
	struct census census = {.bpf = bpf};
	uint64_t bits[SEAL_BPF_BITS / 64] = {0};

	each_entry(bpf, count_entry, &census);
	/* One that died between a counter and its entry left the counter too high, never too low. */
	__atomic_store_n(&bpf->control->entries, census.entries, __ATOMIC_SEQ_CST);
	__atomic_store_n(&bpf->control->exclusive, census.exclusive, __ATOMIC_SEQ_CST);
	for (uint32_t bit = 0; bit < SEAL_BPF_BITS; bit++)
		if (bpf->sealed[bit])
			bits[bit / 64] |= UINT64_C(1) << bit % 64;
	for (uint32_t i = 0; i < SEAL_BPF_BITS / 64; i++)
		__atomic_store_n(&bpf->control->sealed[i], bits[i], __ATOMIC_SEQ_CST);
}

/* Events */

static int take_event(void *context, void *data, size_t size)
{
	struct seal_bpf *bpf = context;

	if (size < sizeof(struct seal_bpf_event))
		return 0;
	memcpy(&bpf->events[bpf->event_count++], data, sizeof(struct seal_bpf_event));
	return bpf->event_count == bpf->event_room ? -ENOSPC : 0; /* stops after this one */
}

size_t seal_bpf_events(struct seal_bpf *bpf, struct seal_bpf_event *out, size_t max)
{
	if (max == 0)
		return 0;
	bpf->events = out;
	bpf->event_room = max;
	bpf->event_count = 0;
	ring_buffer__consume(bpf->ring);
	return bpf->event_count;
}

int seal_bpf_fd(const struct seal_bpf *bpf)
{
	return ring_buffer__epoll_fd(bpf->ring);
}

uint64_t seal_bpf_lost_events(const struct seal_bpf *bpf)
{
	return __atomic_load_n(&bpf->control->lost_events, __ATOMIC_RELAXED);
}

/* Beginning and end */

void seal_bpf_exempt(struct seal_bpf *bpf, int32_t pid, uint64_t start_time)
{
	/* Nobody is exempt in between. */
	__atomic_store_n(&bpf->control->service, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&bpf->control->service_start, start_time, __ATOMIC_SEQ_CST);
	__atomic_store_n(&bpf->control->service, pid, __ATOMIC_SEQ_CST);
}

/* A kernel without "bpf" in its lsm= list loads and attaches everything, and asks nothing. */
static int is_asked(struct seal_bpf *bpf)
{
	struct seal_bpf_range range = {0, 1 << 20, UINT64_MAX, 0, 0, SEAL_POLICY_ARMING, 0, 0};
	int fd = memfd_create("sealsvc-probe", MFD_CLOEXEC), result = -ENODATA;
	struct seal_bpf_file file;

	if (fd < 0)
		return -errno;
	seal_bpf_exempt(bpf, 0, 0);
	if (!ftruncate(fd, 8192) && !seal_bpf_identify(fd, &file))
		result = seal_bpf_put(bpf, &file, 0, 0, &range);
	if (!result) {
		if (!ftruncate(fd, 4096))
			result = -EOPNOTSUPP;
		else if (errno != ETXTBSY)
			result = -errno;
		seal_bpf_take(bpf, &file, range.token);
	}
	close(fd);
	return result;
}

static int map_fd(struct seal_bpf *bpf, const char *name)
{
	return bpf_object__find_map_fd_by_name(bpf->object, name);
}

static int take_maps_over(struct seal_bpf *bpf)
{
	void *control;

	control = mmap(NULL, sizeof(*bpf->control), PROT_READ | PROT_WRITE, MAP_SHARED,
		       map_fd(bpf, "seal_control"), 0);
	if (control == MAP_FAILED)
		return -errno;
	bpf->control = control;
	bpf->files = map_fd(bpf, "seal_files");
	bpf->underway = map_fd(bpf, "seal_underway");
	/* The first is read first: trips do not wait behind refusals. */
	bpf->ring = ring_buffer__new(map_fd(bpf, "seal_trips"), bpf_take_trip, bpf, NULL);
	if (!bpf->ring || ring_buffer__add(bpf->ring, map_fd(bpf, "seal_events"), take_event, bpf))
		return -errno;
	take_census(bpf);
	bpf->untracked = bpf->control->untracked;
	bpf->control->layout = SEAL_BPF_LAYOUT;
	return 0;
}

static void why_not_asked(const struct seal_bpf *bpf, char *why, size_t size)
{
	for (size_t i = 0; i < BPF_PROGRAMS; i++)
		if (bpf->programs[i].state == SEAL_BPF_OFF &&
		    !strncmp(bpf->programs[i].name, "setattr", 7)) {
			snprintf(why, size, "%s %s", bpf->programs[i].name, bpf->programs[i].why);
			return;
		}
	snprintf(why, size, "BPF LSM is not active: boot with bpf in the lsm= list");
}

static int begin(struct seal_bpf *bpf, const char *object, const char *directory,
		 const char *without, char *why, size_t size)
{
	int result = bpf_load(bpf, object, directory, without, why, size);

	if (result)
		return result;
	result = take_maps_over(bpf);
	if (!result)
		result = bpf_attach(bpf);
	if (result) {
		snprintf(why, size, "attaching BPF LSM programs: %s", strerror(-result));
		return result;
	}
	result = is_asked(bpf);
	if (result == -EOPNOTSUPP)
		why_not_asked(bpf, why, size);
	else if (result)
		snprintf(why, size, "the probe of BPF LSM failed: %s", strerror(-result));
	if (!result) {
		result = bpf_pin(bpf, directory);
		if (result)
			snprintf(why, size, "pinning below %s: %s", directory, strerror(-result));
	}
	return result;
}

int seal_bpf_open(const char *object, const char *directory, const char *without,
		  struct seal_bpf **out, char *why, size_t size)
{
	int result, was_there = !access(directory, F_OK);
	struct seal_bpf *bpf = calloc(1, sizeof(*bpf));

	if (!bpf)
		return -ENOMEM;
	pthread_mutex_init(&bpf->lock, NULL);
	why[0] = '\0';
	result = begin(bpf, object, directory, without, why, size);
	if (result) {
		/* What was in force stays so. */
		seal_bpf_close(bpf);
		if (!was_there)
			seal_bpf_unpin(directory);
		return result;
	}
	*out = bpf;
	return 0;
}

void seal_bpf_close(struct seal_bpf *bpf)
{
	ring_buffer__free(bpf->ring);
	for (size_t i = 0; i < BPF_PROGRAMS; i++)
		if (bpf->links[i])
			bpf_link__destroy(bpf->links[i]);
	bpf_close_trips(bpf);
	if (bpf->control)
		munmap(bpf->control, sizeof(*bpf->control));
	bpf_object__close(bpf->object);
	pthread_mutex_destroy(&bpf->lock);
	free(bpf);
}

size_t seal_bpf_programs(struct seal_bpf *bpf, struct seal_bpf_program *out, size_t max)
{
	size_t i;

	for (i = 0; i < BPF_PROGRAMS && i < max; i++) {
		struct bpf_program *program =
			bpf_object__find_program_by_name(bpf->object, bpf->programs[i].name);
		struct bpf_prog_info info = {0};
		uint32_t length = sizeof(info);

		out[i] = bpf->programs[i];
		if (out[i].state == SEAL_BPF_ON &&
		    !bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &length))
			out[i].misses = info.recursion_misses;
	}
	return i;
}

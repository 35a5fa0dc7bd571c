/* Registered ranges: what was granted in them, and what the gate asks about them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

uint64_t seal_ring_key(uint32_t ring, uint32_t file)
{
	return (uint64_t)ring << 32 | file;
}

/* Takes the descriptor over. */
static int read_map(int map, struct seal_map_extent **out, size_t *count)
{
	AUTO_FREE struct seal_map_extent *rows = NULL;
	AUTO_CLOSE int fd = map;
	size_t size, done = 0;
	struct stat st;

	*out = NULL;
	*count = 0;
	if (fd < 0)
		return 0;
	if (fstat(fd, &st) < 0)
		return -errno;
	size = (size_t)st.st_size / sizeof(*rows) * sizeof(*rows);
	rows = malloc(size);
	if (size && !rows)
		return -ENOMEM;
	while (done < size) {
		ssize_t n = pread(fd, (char *)rows + done, size - done, (off_t)done);

		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	*count = size / sizeof(*rows);
	*out = KEEP_POINTER(rows);
	return 0;
}

static int64_t add(struct ring *ring, const struct seal_registration *registration)
{
	for (uint32_t i = 0; i < SEAL_RING_FILES; i++)
		if (!ring->files[i].is.id) {
			/* Closed, and stale: seal_ring_freshen opens it. */
			ring->files[i] = (struct registration){.is = *registration, .stale = 1};
			return i;
		}
	return -ENOSPC;
}

int64_t seal_ring_register(struct seal_rings *rings, uint32_t number,
			   const struct seal_registration *registration, int map)
{
	uint32_t block = registration->block_size;
	AUTO_FREE struct seal_map_extent *rows = NULL;
	struct ring *ring;
	int64_t file = -ENOENT;
	size_t count;
	int error = read_map(map, &rows, &count);

	if (error)
		return error;
	if (!registration->id || !block || (block & (block - 1)) ||
	    registration->start >= registration->end ||
	    ((registration->start | registration->end) & (block - 1)))
		return -EINVAL;
	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		file = add(ring, registration);
	if (file >= 0) {
		ring->files[file].map = KEEP_POINTER(rows);
		ring->files[file].map_count = count;
	}
	return file;
}

/* Also those that are adopted: what the service still says of them finds them gone. */
static void end_all(struct seal_rings *rings, struct ring *ring, uint32_t file, uint32_t state)
{
	for (uint32_t i = 0; i < ring->high && ring->files[file].live; i++) {
		struct seal_slot *slot = table_live(ring, i);
		uint64_t was = slot ? slot->word : 0;

		if (!slot || slot->file != file)
			continue;
		table_publish(slot, state, seal_word_seqid(slot->word) + 1);
		ring_tell_seal(ring, SEAL_EVENT_OVER, i);
		ring_report_end(rings, ring, i, was);
		table_release(ring, i);
	}
}

int seal_ring_unregister(struct seal_rings *rings, uint32_t number, uint32_t file, uint32_t state)
{
	struct registration *there = NULL;
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		there = ring_file(ring, file);
	if (there) {
		end_all(rings, ring, file, state);
		ring_lane_end(rings, ring, there);
		free(there->map);
		memset(there, 0, sizeof(*there));
	}
	return there ? 0 : -ENOENT;
}

int seal_ring_freshen(struct seal_rings *rings, uint32_t number, uint32_t file, int map)
{
	struct registration *there = NULL;
	AUTO_FREE struct seal_map_extent *rows = NULL;
	struct ring *ring;
	size_t count;
	int error = read_map(map, &rows, &count);

	if (error)
		return error;
	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		there = ring_file(ring, file);
	if (there) {
		if (map >= 0) {
			free(there->map);
			there->map = KEEP_POINTER(rows);
			there->map_count = count;
			there->stale = 0;
		}
		there->open = 1;
	}
	return there ? 0 : -ENOENT;
}

int seal_ring_close(struct seal_rings *rings, uint32_t number, uint32_t file, int recall,
		    uint64_t start, uint64_t end)
{
	struct registration *there = NULL;
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		there = ring_file(ring, file);
	if (there)
		there->open = 0;
	for (uint32_t i = 0; there && recall && i < ring->high; i++) {
		struct seal_slot *slot = table_live(ring, i);

		if (slot && slot->file == file && slot->offset < end &&
		    slot->offset + slot->length > start)
			ring_recall(rings, ring, i);
	}
	return there ? 0 : -ENOENT;
}

int seal_ring_is_stale(struct seal_rings *rings, uint32_t number, uint32_t file)
{
	struct registration *there = NULL;
	struct ring *ring;
	int stale = -ENOENT;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		there = ring_file(ring, file);
	if (there)
		stale = there->stale;
	return stale;
}

void seal_rings_suspend(struct seal_rings *rings, int suspended)
{
	SCOPED_LOCK(rings->lock);
	rings->suspended = suspended;
}

void ring_owe(struct registration *file, const struct seal_slot *slot)
{
	const struct seal_guard given = table_guard(slot, file);

	if (!file->owed.end || given.start < file->owed.start)
		file->owed.start = given.start;
	if (given.end > file->owed.end)
		file->owed.end = given.end;
}

void ring_report_end(struct seal_rings *rings, struct ring *ring, uint32_t number, uint64_t was)
{
	const struct seal_slot *slot = &ring->slots[number];
	struct seal_ring_report report = {
		.kind = SEAL_RING_OVER,
		.ring = ring->number,
		.handle = slot->word,
		.slot = number,
		.file = slot->file,
		.seal = *slot,
	};

	if (!slot->told || slot->adopted)
		return;
	report.seal.word = was;
	rings->deliver(rings->context, &report);
}

void ring_recall(struct seal_rings *rings, struct ring *ring, uint32_t number)
{
	struct seal_slot *slot = &ring->slots[number];
	struct registration *file = ring_file(ring, slot->file);
	struct seal_ring_report report = {
		.kind = SEAL_RING_ADOPTED,
		.ring = ring->number,
		.slot = number,
		.file = slot->file,
		.seal = *slot,
	};

	if (slot->adopted || !file)
		return;
	if (seal_word_state(slot->word) == SEAL_COURTESY) {
		/* Its ttl has passed: it stands in nobody's way. */
		table_step(slot, SEAL_STEP_EXPIRE);
		ring_owe(file, slot);
		ring_tell_seal(ring, SEAL_EVENT_OVER, number);
		ring_report_end(rings, ring, number, report.seal.word);
		table_release(ring, number);
		return;
	}
	slot->adopted = ADOPTED;
	slot->deadline = ring_now_ns() + file->is.grace;
	table_step(slot, SEAL_STEP_RECALL);
	ring->recalls++;
	ring_tell_seal(ring, SEAL_EVENT_RECALL, number);
	report.seal.deadline = slot->deadline;
	rings->deliver(rings->context, &report);
}

/* What the operation meets in one slot: SEAL_POLICY_* or -1. */
static int meet(struct seal_rings *rings, struct ring *ring, uint32_t number,
		const struct seal_operation *operation, const struct seal_traits *traits, int own,
		int *error)
{
	struct seal_slot *slot = &ring->slots[number];
	struct seal_guard guard = table_guard(slot, &ring->files[slot->file]);
	int refusal;

	if (!seal_conflicts(operation, &guard, traits, own))
		return -1;
	refusal = seal_policy_errno(guard.policy, own);
	*error = seal_prevailing_errno(*error, refusal);
	if (!refusal)
		ring_recall(rings, ring, number);
	/* The recall of one that was kept by courtesy has ended it. */
	return seal_word_live(slot->word) ? (int)guard.policy : -1;
}

int seal_rings_judge(void *context, uint64_t key, const struct seal_operation *operation,
		     const struct seal_traits *traits, int by_holder, int absolved, int *error,
		     uint64_t *unproven)
{
	struct seal_rings *rings = context;
	struct ring *ring = ring_find(rings, (uint32_t)(key >> 32));
	struct registration *file = ring ? ring_file(ring, (uint32_t)key) : NULL;
	uint32_t left = file ? file->live : 0;
	int strictest = -1;

	if (!file) /* between its guard and itself: fail closed */
		return SEAL_POLICY_WAIT;
	for (uint32_t i = 0; left && i < ring->high; i++) {
		int policy;

		if (!table_live(ring, i) || ring->slots[i].file != (uint32_t)key)
			continue;
		left--;
		policy = meet(rings, ring, i, operation, traits, by_holder, error);
		if (policy > strictest)
			strictest = policy;
	}
	if (strictest >= 0)
		return strictest;
	if (!absolved && seal_conflicts(operation, &file->owed, traits, 0)) {
		*unproven = file->is.id;
		return SEAL_POLICY_WAIT;
	}
	/* Under the lock that grants take: none can be made on the map that is about to change. */
	file->stale = 1;
	return -1;
}

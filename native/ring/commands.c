/* What each command does. `command` is our copy of the entry; it is answered in place. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "internal.h"

#define EXTENTS_MAX 1024 /* of one answer: the lock is held while they are copied */

static char *entry_at(struct ring *ring, uint32_t place)
{
	return (char *)ring->commands + place;
}

void ring_answer(struct ring *ring, uint32_t place, const struct seal_command *command)
{
	struct seal_command *entry = (void *)entry_at(ring, place);
	int whole = command->size >= sizeof(*entry);

	entry->status = command->status;
	entry->slot = command->slot;
	entry->word = command->word;
	if (whole)
		entry->count = command->count;
	__atomic_store_n(&entry->done, 1, __ATOMIC_RELEASE);
}

static int is_inside(const struct registration *file, uint64_t offset, uint64_t length)
{
	uint64_t mask = file->is.block_size - 1;
	uint64_t end = offset + length;

	if (!length || end < offset || end > UINT64_MAX - mask)
		return 0;
	return (offset & ~mask) >= file->is.start && ((end + mask) & ~mask) <= file->is.end;
}

/* Wide enough for every ttl that means something: 0 means none. */
static uint64_t moment_after(uint64_t ttl)
{
	uint64_t now = ring_now_ns();

	return ttl > UINT64_MAX / 2 - now ? UINT64_MAX / 2 : now + ttl;
}

static void set_expiry(struct ring *ring, struct seal_slot *slot, uint64_t ttl)
{
	slot->expires = ttl ? moment_after(ttl) : 0;
	if (slot->expires && slot->expires < ring->next_expiry)
		ring->next_expiry = slot->expires;
}

/* The first extent that ends behind `offset`; they are in order. */
static size_t first_behind(const struct registration *file, uint64_t offset)
{
	size_t low = 0, high = file->map_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (file->map[middle].logical + file->map[middle].length <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Has every byte of the seal a place that can be promised? */
static int is_mapped(const struct registration *file, const struct seal_slot *slot)
{
	const struct seal_guard range = table_guard(slot, file);
	uint64_t at = range.start;

	for (size_t i = first_behind(file, at); at < range.end; i++) {
		if (i == file->map_count || file->map[i].logical > at)
			return 0;
		at = file->map[i].logical + file->map[i].length;
	}
	return 1;
}

static int32_t grant(struct seal_rings *rings, struct ring *ring, struct seal_command *command)
{
	struct registration *file = ring_file(ring, command->file);
	struct seal_slot *slot;
	int64_t number;

	if (!file)
		return -EBADF;
	if ((command->iomode != SEAL_READ && command->iomode != SEAL_RW) ||
	    !is_inside(file, command->offset, command->length))
		return -EINVAL;
	if (command->iomode > file->is.iomode)
		return -EACCES;
	number = table_take(ring);
	if (number < 0)
		return (int32_t)number;
	slot = &ring->slots[number];
	slot->id = ++rings->next_id;
	slot->offset = command->offset;
	slot->length = command->length;
	slot->cookie = command->cookie;
	slot->file = command->file;
	slot->iomode = (uint8_t)command->iomode;
	slot->policy = (uint8_t)file->is.policy;
	if (!is_mapped(file, slot)) {
		slot->file = SEAL_NO_FILE;
		table_release(ring, (uint32_t)number);
		return -EOPNOTSUPP;
	}
	set_expiry(ring, slot, command->ttl);
	table_step(slot, SEAL_STEP_GRANT);
	file->live++;
	ring->grants++;
	command->slot = (uint32_t)number;
	command->word = slot->word;
	return 0;
}

/* The seal that a command names, as its sender knows it. */
static int32_t find(struct ring *ring, const struct seal_command *command, struct seal_slot **out)
{
	*out = table_live(ring, command->slot);
	if (!*out)
		return -ENOENT;
	return (*out)->word == command->word ? 0 : -ESTALE;
}

static int32_t give_back(struct seal_rings *rings, struct ring *ring, struct seal_command *command)
{
	struct seal_slot *slot = &ring->slots[command->slot];
	uint64_t was = slot->word;
	int error = table_step(slot, SEAL_STEP_RETURN);

	if (error)
		return error;
	/* What is still mapped is asked for when somebody conflicts. */
	ring_owe(&ring->files[slot->file], slot);
	ring->returns++;
	command->word = slot->word;
	ring_report_end(rings, ring, command->slot, was);
	table_release(ring, command->slot);
	return 0;
}

static int32_t renew(struct ring *ring, struct seal_command *command)
{
	struct seal_slot *slot = &ring->slots[command->slot];

	set_expiry(ring, slot, command->ttl);
	if (seal_word_state(slot->word) == SEAL_COURTESY)
		table_step(slot, SEAL_STEP_RENEW);
	command->word = slot->word;
	return 0;
}

static int32_t inquire(struct ring *ring, struct seal_command *command)
{
	if (command->slot >= ring->shape.slots)
		return -ENOENT;
	command->word = ring->slots[command->slot].word;
	return 0;
}

static int32_t extents(struct ring *ring, struct seal_command *command)
{
	const struct registration *file = ring_file(ring, command->file);
	uint64_t end = command->offset + command->length;
	uint32_t room = command->data_length / sizeof(struct seal_map_extent);
	size_t first, last;

	if (!file)
		return -EBADF;
	if (end < command->offset || command->data % _Alignof(struct seal_map_extent) ||
	    command->data > ring->shape.data ||
	    command->data_length > ring->shape.data - command->data)
		return -EINVAL;
	if (file->stale)
		return -EAGAIN;
	first = last = first_behind(file, command->offset);
	while (last < file->map_count && file->map[last].logical < end &&
	       last - first < EXTENTS_MAX)
		last++;
	command->count = (uint32_t)(last - first);
	if (room > command->count)
		room = command->count;
	if (room)
		memcpy(ring->data + command->data, file->map + first, room * sizeof(*file->map));
	return room < command->count ? -ENOBUFS : 0;
}

static int overlaps(const struct registration *source, const struct registration *to,
		    const struct seal_command *command)
{
	uint64_t apart = command->offset > command->cookie ? command->offset - command->cookie
							   : command->cookie - command->offset;

	return source->is.device == to->is.device && source->is.inode == to->is.inode &&
	       apart < command->length;
}

/* Whether the service may copy so. The copy itself, and what it may meet, are the service's. */
static int32_t check_copy(struct ring *ring, const struct seal_command *command)
{
	const struct registration *source = ring_file(ring, command->file);
	const struct registration *to = ring_file(ring, command->slot);

	if (!source || !to)
		return -EBADF;
	if (!is_inside(source, command->offset, command->length) ||
	    !is_inside(to, command->cookie, command->length) || overlaps(source, to, command))
		return -EINVAL;
	if (to->is.iomode != SEAL_RW)
		return -EACCES;
	return source->open && to->open ? 0 : -EAGAIN;
}

int ring_is_about_a_seal(uint16_t op)
{
	switch (op) {
	case SEAL_CMD_RETURN:
	case SEAL_CMD_RENEW:
	case SEAL_CMD_MAPPED:
	case SEAL_CMD_DOWNGRADE:
	case SEAL_CMD_SHRINK:
	case SEAL_CMD_PROGRESS:
		return 1;
	}
	return 0;
}

/* 1 when the service is to see to it. */
static int is_for_the_service(const struct seal_rings *rings, struct ring *ring,
			      const struct seal_command *command)
{
	const struct registration *file;

	if (command->op == SEAL_CMD_GRANT) {
		file = ring_file(ring, command->file);
		return file && (file->stale || !file->open || rings->suspended);
	}
	if (!ring_is_about_a_seal(command->op))
		return command->op == SEAL_CMD_COPY_RANGE;
	if (command->op != SEAL_CMD_RETURN && command->op != SEAL_CMD_RENEW)
		return 1;
	return ring->slots[command->slot].adopted;
}

int ring_execute(struct seal_rings *rings, struct ring *ring, struct seal_command *command)
{
	struct seal_slot *slot;

	command->status = 0;
	if (ring_is_about_a_seal(command->op))
		command->status = find(ring, command, &slot);
	else if (command->op == SEAL_CMD_COPY_RANGE)
		command->status = check_copy(ring, command);
	if (!command->status && is_for_the_service(rings, ring, command))
		return 0;
	if (command->status)
		return 1;
	switch (command->op) {
	case SEAL_CMD_NOP:
		break;
	case SEAL_CMD_GRANT:
		command->status = grant(rings, ring, command);
		break;
	case SEAL_CMD_RETURN:
		command->status = give_back(rings, ring, command);
		break;
	case SEAL_CMD_RENEW:
		command->status = renew(ring, command);
		break;
	case SEAL_CMD_INQUIRE:
		command->status = inquire(ring, command);
		break;
	case SEAL_CMD_EXTENTS:
		command->status = extents(ring, command);
		break;
	default:
		command->status = -ENOSYS;
	}
	return 1;
}

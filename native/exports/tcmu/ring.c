#include "ring.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "layout.h"

#define SLOTS (2 * TCMU_COMMANDS)

static struct tcmu_mailbox_view *mailbox(const struct tcmu_ring *ring)
{
	return (struct tcmu_mailbox_view *)ring->base;
}

static char *entry_at(const struct tcmu_ring *ring, uint32_t at)
{
	return ring->base + ring->ring_offset + at;
}

/* Entries are aligned to 8 bytes but their fields are packed. */
#define GET(type, place)                                                                           \
	({                                                                                         \
		type value_;                                                                       \
		memcpy(&value_, (place), sizeof(value_));                                          \
		value_;                                                                            \
	})
#define PUT(type, place, what)                                                                     \
	({                                                                                         \
		type value_ = (type)(what);                                                        \
		memcpy((place), &value_, sizeof(value_));                                          \
	})

static const struct tcmu_layout *layout_of(unsigned version)
{
	for (unsigned i = 0; i < tcmu_layout_count; i++)
		if (tcmu_layouts[i].version == version)
			return &tcmu_layouts[i];
	return NULL;
}

static void set_tail(struct tcmu_ring *ring, uint32_t tail)
{
	ring->tail = tail;
	__atomic_store_n(&mailbox(ring)->tail, tail, __ATOMIC_RELEASE);
}

static size_t request_bytes(const struct tcmu_ring *ring, unsigned iov_count)
{
	return ring->layout->iov + iov_count * 16UL + TCMU_CDB;
}

/* Writes the request that the note has into the slot at `at`. */
static void put_request(struct tcmu_ring *ring, const struct tcmu_note *note, uint32_t at)
{
	const struct tcmu_layout *layout = ring->layout;
	char *entry = entry_at(ring, at);
	uint64_t cdb = layout->iov + note->iov_count * 16ULL;

	PUT(uint16_t, entry + layout->id, note->moved_id);
	if (layout->uflags)
		entry[layout->uflags] = 0;
	if (layout->bidi)
		PUT(uint32_t, entry + layout->bidi, 0);
	PUT(uint32_t, entry + layout->iov_count, note->iov_count);
	PUT(uint64_t, entry + layout->cdb, ring->ring_offset + at + cdb);
	memcpy(entry + layout->iov, note->iov, note->iov_count * sizeof(note->iov[0]));
	memcpy(entry + cdb, note->cdb, TCMU_CDB);
}

static void put_answer(struct tcmu_ring *ring, uint32_t at, uint16_t id, uint8_t status,
		       const uint8_t *sense, uint64_t read_len)
{
	const struct tcmu_layout *layout = ring->layout;
	char *entry = entry_at(ring, at);
	int short_read = read_len && layout->read_len && ring->flags & MAILBOX_READ_LEN;

	PUT(uint16_t, entry + layout->id, id);
	memset(entry + layout->status, 0, (size_t)layout->sense - layout->status);
	entry[layout->status] = (char)status;
	memcpy(entry + layout->sense, sense, TCMU_SENSE);
	if (layout->uflags)
		entry[layout->uflags] = short_read ? UFLAG_READ_LEN : 0;
	if (short_read)
		PUT(uint32_t, entry + layout->read_len, read_len);
}

/* All steps can be repeated. */
static void carry_note_out(struct tcmu_ring *ring, struct tcmu_note *note, uint32_t length)
{
	put_request(ring, note, note->free_slot);
	put_answer(ring, note->tail, note->done_id, note->status, note->sense, note->read_len);
	set_tail(ring, ring_forward(ring->geometry, note->tail, length));
	__atomic_store_n(&note->armed, 0, __ATOMIC_RELEASE);
}

/* Whether there is a whole entry of `least` bytes at `at`, below `end`, which lies ahead of it. */
static int entry_length(const struct tcmu_ring *ring, uint32_t at, uint32_t end, uint32_t least,
			uint32_t *length)
{
	*length = GET(uint32_t, entry_at(ring, at)) & ~(uint32_t)OP_MASK;
	return *length >= least && ring_holds(ring->geometry, at, end, *length, ENTRY_ALIGN);
}

static int finish_note(struct tcmu_ring *ring, uint32_t head)
{
	struct tcmu_note *note = ring->note;
	uint32_t length, room;
	uint16_t id;

	if (!note || !__atomic_load_n(&note->armed, __ATOMIC_ACQUIRE))
		return 0;
	/* Another tail: the steps were done, or the ring was emptied (the attribute reset_ring). */
	if (note->tail != ring->tail || ring->tail == head) {
		note->armed = 0;
		return 0;
	}
	if (!ring_is_position(ring->geometry, note->free_slot, ENTRY_ALIGN) ||
	    note->iov_count > TCMU_IOVS ||
	    !entry_length(ring, note->tail, head, ring->layout->smallest, &length) ||
	    !entry_length(ring, note->free_slot, head,
			  (uint32_t)request_bytes(ring, note->iov_count), &room))
		return -EPROTO;
	id = GET(uint16_t, entry_at(ring, note->tail) + ring->layout->id);
	if (id == note->moved_id || id == note->done_id)
		carry_note_out(ring, note, length);
	note->armed = 0;
	return 0;
}

int tcmu_ring_open(struct tcmu_ring *ring, void *base, size_t size, struct tcmu_note *note)
{
	struct tcmu_mailbox_view *box = base;
	uint32_t head;

	memset(ring, 0, offsetof(struct tcmu_ring, slots));
	for (unsigned i = 0; i < TCMU_COMMANDS; i++)
		ring->commands[i].state = TCMU_FREE;
	if (size < sizeof(*box))
		return -EPROTO;
	ring->layout = layout_of(box->version);
	if (!ring->layout)
		return -EPROTONOSUPPORT;
	ring->base = base;
	ring->size = size;
	ring->note = note;
	ring->flags = box->flags & ring->layout->may_flag;
	ring->ring_offset = box->ring_offset;
	ring->geometry = ring_tcmu(box->ring_size);
	ring->tail = box->tail;
	head = __atomic_load_n(&box->head, __ATOMIC_ACQUIRE);
	if (ring->ring_offset < sizeof(*box) || ring->ring_offset % ENTRY_ALIGN ||
	    !ring->geometry.size || ring->geometry.size % ENTRY_ALIGN || ring->ring_offset > size ||
	    ring->geometry.size > size - ring->ring_offset ||
	    !ring_is_position(ring->geometry, ring->tail, ENTRY_ALIGN) ||
	    !ring_is_position(ring->geometry, head, ENTRY_ALIGN))
		return -EPROTO;
	ring->data_offset = ring->ring_offset + ring->geometry.size;
	if (finish_note(ring, head) < 0)
		return -EPROTO;
	ring->next = ring->tail;
	return 0;
}

static struct tcmu_command *free_command(struct tcmu_ring *ring)
{
	for (unsigned i = 0; i < TCMU_COMMANDS; i++)
		if (ring->commands[i].state == TCMU_FREE)
			return &ring->commands[i];
	return NULL;
}

static int take_parts(const struct tcmu_ring *ring, const char *entry, struct tcmu_command *command)
{
	command->bytes = 0;
	for (unsigned i = 0; i < command->iov_count; i++) {
		const char *part = entry + ring->layout->iov + i * 16UL;
		uint64_t offset = GET(uint64_t, part), length = GET(uint64_t, part + 8);

		if (offset < ring->data_offset || offset > ring->size ||
		    length > ring->size - offset)
			return -EPROTO;
		command->iov[i] = (struct iovec){ring->base + offset, length};
		command->bytes += length;
	}
	return 0;
}

static int take_cdb(const struct tcmu_ring *ring, const char *entry, struct tcmu_command *command)
{
	uint64_t offset = GET(uint64_t, entry + ring->layout->cdb), left;

	if (offset < ring->ring_offset || offset >= ring->data_offset)
		return -EPROTO;
	left = ring->data_offset - offset;
	memset(command->cdb, 0, TCMU_CDB);
	memcpy(command->cdb, ring->base + offset, left < TCMU_CDB ? left : TCMU_CDB);
	return 0;
}

static int take(const struct tcmu_ring *ring, uint32_t at, uint32_t length,
		struct tcmu_command *command)
{
	const struct tcmu_layout *layout = ring->layout;
	const char *entry = entry_at(ring, at);
	uint64_t parts;

	if (length < layout->smallest)
		return -EPROTO;
	command->id = GET(uint16_t, entry + layout->id);
	command->bidi = layout->bidi && GET(uint32_t, entry + layout->bidi);
	parts = GET(uint32_t, entry + layout->iov_count);
	if (parts > (length - layout->iov) / 16)
		return -EPROTO;
	command->crowded = parts > TCMU_IOVS;
	command->iov_count = command->crowded || command->bidi ? 0 : (unsigned)parts;
	command->status = 0;
	command->read_len = 0;
	memset(command->sense, 0, TCMU_SENSE);
	if (take_cdb(ring, entry, command) < 0)
		return -EPROTO;
	return take_parts(ring, entry, command);
}

static struct tcmu_slot *slot_of(struct tcmu_ring *ring, unsigned number)
{
	return &ring->slots[(ring->first + number) % SLOTS];
}

static int release_first(struct tcmu_ring *ring)
{
	struct tcmu_slot *slot = slot_of(ring, 0);

	set_tail(ring, ring_forward(ring->geometry, slot->at, slot->length));
	ring->first = (ring->first + 1) % SLOTS;
	ring->count--;
	return 1;
}

/* A command that is done, and whose slot has room for the request of `waiting`. */
static struct tcmu_slot *fitting(struct tcmu_ring *ring, const struct tcmu_command *waiting)
{
	if (!ring->note || !(ring->flags & MAILBOX_OUT_OF_ORDER) || !ring->done ||
	    waiting->crowded || waiting->bidi)
		return NULL;
	for (unsigned i = 1; i < ring->count; i++) {
		struct tcmu_slot *slot = slot_of(ring, i);

		if (slot->command && slot->command->state == TCMU_DONE &&
		    slot->length >= request_bytes(ring, waiting->iov_count))
			return slot;
	}
	return NULL;
}

static void write_note(const struct tcmu_ring *ring, const struct tcmu_slot *first,
		       const struct tcmu_slot *other)
{
	const struct tcmu_command *moved = first->command, *done = other->command;
	struct tcmu_note *note = ring->note;

	note->tail = first->at;
	note->free_slot = other->at;
	note->done_id = done->id;
	note->moved_id = moved->id;
	note->status = done->status;
	note->read_len = done->read_len;
	memcpy(note->sense, done->sense, TCMU_SENSE);
	memcpy(note->cdb, moved->cdb, TCMU_CDB);
	note->iov_count = moved->iov_count;
	for (unsigned i = 0; i < moved->iov_count; i++) {
		note->iov[i][0] = (uint64_t)((char *)moved->iov[i].iov_base - ring->base);
		note->iov[i][1] = moved->iov[i].iov_len;
	}
	__atomic_store_n(&note->armed, 1, __ATOMIC_RELEASE);
}

static void forget(struct tcmu_ring *ring, struct tcmu_command *command)
{
	command->state = TCMU_FREE;
	ring->done--;
}

static int publish(struct tcmu_ring *ring)
{
	int moved = 0;

	while (ring->count) {
		struct tcmu_slot *first = slot_of(ring, 0), *other;
		struct tcmu_command *command = first->command;

		if (command && command->state == TCMU_DONE) {
			put_answer(ring, first->at, command->id, command->status, command->sense,
				   command->read_len);
			forget(ring, command);
		} else if (command) {
			other = fitting(ring, command);
			if (!other)
				break;
			write_note(ring, first, other);
			carry_note_out(ring, ring->note, first->length);
			forget(ring, other->command);
			other->command = command;
		}
		moved = release_first(ring);
	}
	return moved;
}

int tcmu_ring_next(struct tcmu_ring *ring, struct tcmu_command **command)
{
	for (;;) {
		uint32_t head = __atomic_load_n(&mailbox(ring)->head, __ATOMIC_ACQUIRE), length;
		struct tcmu_command *taken = NULL;
		unsigned op;

		if (!ring_is_position(ring->geometry, head, ENTRY_ALIGN))
			return -EPROTO;
		if (head == ring->next || ring->count == SLOTS)
			return 0;
		op = GET(uint32_t, entry_at(ring, ring->next)) & OP_MASK;
		if (!entry_length(ring, ring->next, head, ENTRY_ALIGN, &length))
			return -EPROTO;
		if (op == OP_CMD) {
			taken = free_command(ring);
			if (!taken)
				return 0;
			if (take(ring, ring->next, length, taken) < 0)
				return -EPROTO;
			taken->state = TCMU_TAKEN;
		} else if (op == OP_TMR) {
			ring->resets++; /* the kernel waits for the commands' own ends */
		} else if (op != OP_PAD) {
			ring->unknown++;
			if (ring->layout->uflags)
				entry_at(ring, ring->next)[ring->layout->uflags] = UFLAG_UNKNOWN_OP;
		}
		*slot_of(ring, ring->count++) = (struct tcmu_slot){ring->next, length, taken};
		ring->next = ring_forward(ring->geometry, ring->next, length);
		if (taken) {
			*command = taken;
			return 1;
		}
		publish(ring);
	}
}

int tcmu_ring_has(const struct tcmu_ring *ring, uint16_t id, uint8_t opcode)
{
	uint32_t head = __atomic_load_n(&mailbox(ring)->head, __ATOMIC_ACQUIRE), length;
	struct tcmu_command found;

	if (!ring_is_position(ring->geometry, head, ENTRY_ALIGN))
		return 0;
	for (uint32_t at = ring->tail; at != head; at = ring_forward(ring->geometry, at, length)) {
		if (!entry_length(ring, at, head, ENTRY_ALIGN, &length))
			return 0;
		if ((GET(uint32_t, entry_at(ring, at)) & OP_MASK) == OP_CMD &&
		    take(ring, at, length, &found) == 0 && found.id == id)
			return found.cdb[0] == opcode;
	}
	return 0;
}

int tcmu_ring_done(struct tcmu_ring *ring, struct tcmu_command *command)
{
	command->state = TCMU_DONE;
	ring->done++;
	return publish(ring);
}

int tcmu_ring_is_idle(const struct tcmu_ring *ring)
{
	return ring->count == 0 &&
	       ring->next == __atomic_load_n(&mailbox(ring)->head, __ATOMIC_ACQUIRE);
}

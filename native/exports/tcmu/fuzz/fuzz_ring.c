/* A region of any bytes behind a mailbox that is as good as right: whatever it holds, nothing outside of it is
 * touched, and what is answered in it is taken from it once. */
#include <stdlib.h>
#include <string.h>

#include "../layout.h"
#include "../ring.h"

#define HEADER 8 /* bytes of the input that choose the mailbox */

static struct tcmu_ring ring;
static struct tcmu_note note;

static void touch(struct tcmu_command *command)
{
	for (unsigned i = 0; i < command->iov_count; i++)
		memset(command->iov[i].iov_base, 0x5a, command->iov[i].iov_len);
}

/* Makes entries from the tail on that are right in what `raw` does not tell to leave, so that what lies behind
 * the first checks is reached. Where the last one ends. */
static uint32_t repair(char *region, size_t size, uint8_t raw)
{
	const struct tcmu_mailbox_view *box = (struct tcmu_mailbox_view *)region;
	const struct tcmu_layout *layout = &tcmu_layouts[box->version == 1 ? 0 : 1];
	uint32_t at = box->tail, data_offset = box->ring_offset + box->ring_size;

	for (unsigned i = 0; i < 12 && at + 128 < box->ring_size; i++) {
		char *entry = region + box->ring_offset + at;
		uint32_t word = 112 + (entry[4] & 3) * 8, parts = (uint8_t)entry[8] % 5;
		uint64_t offset = box->ring_offset + at, length = (uint8_t)entry[9] * 4;

		word |= (uint8_t)entry[5] < 200 ? OP_CMD : (uint8_t)entry[5] & OP_MASK;
		if (!(raw & 1))
			memcpy(entry, &word, 4);
		if (!(raw & 2) && (word & OP_MASK) == OP_CMD)
			memcpy(entry + layout->cdb, &offset, 8);
		if (!(raw & 4) && (word & OP_MASK) == OP_CMD)
			memcpy(entry + layout->iov_count, &parts, 4);
		for (unsigned part = 0; !(raw & 8) && part < parts && part < 4; part++) {
			offset = data_offset + (size - data_offset) / 4 * part;
			memcpy(entry + layout->iov + 16 * part, &offset, 8);
			memcpy(entry + layout->iov + 16 * part + 8, &length, 8);
		}
		at += word & ~(uint32_t)OP_MASK;
	}
	return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t body = size > HEADER ? size - HEADER : 0;
	struct tcmu_command *taken[TCMU_COMMANDS];
	struct tcmu_mailbox_view *box;
	unsigned count = 0, steps;
	char *region;

	if (body < 256)
		return 0;
	/* Of exactly this size on the heap: a byte too far is found. */
	region = malloc(sizeof(*box) + body);
	box = (struct tcmu_mailbox_view *)region;
	memcpy(region + sizeof(*box), data + HEADER, body);
	*box = (struct tcmu_mailbox_view){.version = data[0] % 3,
					  .flags = data[1],
					  .ring_offset = 72 + (data[2] & ~7u),
					  .ring_size = (uint32_t)(body * data[3] / 256) & ~7u,
					  .head = data[4] * 8u,
					  .tail = data[5] * 8u};
	if (data[4] & 1 && box->ring_offset + (uint64_t)box->ring_size < sizeof(*box) + body)
		box->head = repair(region, sizeof(*box) + body, data[4] >> 4);
	memcpy(&note, data + HEADER, body < sizeof(note) ? body : sizeof(note));
	note.armed = data[6] & 1;
	if (tcmu_ring_open(&ring, region, sizeof(*box) + body, data[6] & 2 ? &note : NULL) == 0) {
		for (steps = 0; steps < 64; steps++) {
			if (count < TCMU_COMMANDS && tcmu_ring_next(&ring, &taken[count]) == 1) {
				touch(taken[count]);
				count++;
			} else if (!count) {
				break;
			}
			if (count && (data[7] + steps * 7) % 3) {
				unsigned which = (data[7] + steps) % count;

				tcmu_ring_done(&ring, taken[which]);
				taken[which] = taken[--count];
			}
		}
		tcmu_ring_has(&ring, data[7], 0x89);
	}
	free(region);
	return 0;
}

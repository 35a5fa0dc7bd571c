/* Commands for the service. They wait in their ring, also while no service runs. */
#include <errno.h>

#include "base/cleanup.h"
#include "internal.h"

static void report(struct seal_rings *rings, struct ring *ring, struct pending *pending)
{
	const struct seal_command *command = &pending->command;
	struct seal_ring_report report = {
		.kind = SEAL_RING_FORWARD,
		.ring = ring->number,
		.handle = pending->handle,
		.slot = command->slot,
		.file = command->file,
		.command = *command,
	};

	if (ring_is_about_a_seal(command->op) && command->slot < ring->high)
		report.seal = ring->slots[command->slot];
	pending->reported = 1;
	rings->deliver(rings->context, &report);
}

/* 0, or -EAGAIN: too many are waiting. */
static int forward(struct seal_rings *rings, struct ring *ring, uint32_t place,
		   const struct seal_command *command)
{
	for (int i = 0; i < SEAL_RING_PENDING; i++) {
		struct pending *pending = &ring->pending[i];

		if (pending->handle)
			continue;
		rings->counters.forwarded++;
		pending->handle = ++rings->next_handle;
		pending->due_ns = ring_now_ns() + COMMAND_PATIENCE_NS;
		pending->place = place;
		pending->command = *command;
		report(rings, ring, pending);
		/* From here on its state is the service's to change. */
		if (ring_is_about_a_seal(command->op))
			ring->slots[command->slot].adopted = ADOPTED;
		return 0;
	}
	return -EAGAIN;
}

void ring_serve(struct seal_rings *rings, struct ring *ring, uint32_t place,
		struct seal_command *command)
{
	if (command->op == SEAL_CMD_PI_WRITE || command->op == SEAL_CMD_PI_READ) {
		ring_lane_serve(ring, place, command);
		return;
	}
	if (!ring_execute(rings, ring, command)) {
		command->status = forward(rings, ring, place, command);
		if (!command->status)
			return;
	}
	ring_answer(ring, place, command);
}

static void finish(struct ring *ring, struct pending *pending, int32_t status)
{
	struct seal_command *command = &pending->command;

	command->status = status;
	if (ring_is_about_a_seal(command->op))
		command->word = ring->slots[command->slot].word;
	pending->handle = 0;
	ring_answer(ring, pending->place, command);
}

unsigned ring_abort_overdue(struct ring *ring, uint64_t now_ns)
{
	unsigned count = 0;

	for (int i = 0; i < SEAL_RING_PENDING; i++)
		if (ring->pending[i].handle && ring->pending[i].due_ns <= now_ns) {
			finish(ring, &ring->pending[i], -ETIMEDOUT);
			count++;
		}
	return count;
}

static struct pending *find(struct ring *ring, uint64_t handle)
{
	for (int i = 0; handle && i < SEAL_RING_PENDING; i++)
		if (ring->pending[i].handle == handle)
			return &ring->pending[i];
	return NULL;
}

int seal_ring_complete(struct seal_rings *rings, uint32_t number, uint64_t handle, int32_t status,
		       uint64_t copied)
{
	struct pending *pending = NULL;
	struct ring *ring;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		pending = find(ring, handle);
	if (pending && status == SEAL_RING_AGAIN && pending->command.op == SEAL_CMD_GRANT) {
		/* The registration is fresh, or it is not: it is not waited for twice. */
		struct pending was = *pending;
		struct registration *file = ring_file(ring, was.command.file);

		if (file && file->open && !file->stale && !rings->suspended) {
			pending->handle = 0;
			ring_serve(rings, ring, was.place, &was.command);
		} else {
			finish(ring, pending, -EAGAIN);
		}
	} else if (pending) {
		if (pending->command.op == SEAL_CMD_COPY_RANGE)
			pending->command.word = copied;
		finish(ring, pending, status > 0 ? 0 : status);
	}
	if (pending)
		ring_bell(ring);
	return pending ? 0 : -ENOENT;
}

static void replay(struct seal_rings *rings, struct ring *ring)
{
	/* The seals first: commands are about them. */
	for (uint32_t i = 0; i < ring->high; i++) {
		struct seal_slot *slot = table_live(ring, i);
		struct seal_ring_report adopted = {
			.kind = SEAL_RING_ADOPTED,
			.ring = ring->number,
			.slot = i,
		};

		if (!slot || slot->adopted != ADOPTED_BEFORE)
			continue;
		slot->adopted = ADOPTED;
		adopted.file = slot->file;
		adopted.seal = *slot;
		rings->deliver(rings->context, &adopted);
	}
	for (int i = 0; i < SEAL_RING_PENDING; i++)
		if (ring->pending[i].handle && !ring->pending[i].reported)
			report(rings, ring, &ring->pending[i]);
}

static void forget_reports(struct ring *ring)
{
	for (int i = 0; i < SEAL_RING_PENDING; i++)
		ring->pending[i].reported = 0;
	for (uint32_t i = 0; i < ring->high; i++)
		if (ring->slots[i].adopted)
			ring->slots[i].adopted = ADOPTED_BEFORE;
}

void seal_rings_hand_over(struct seal_rings *rings, void (*begin)(void *), void *context)
{
	SCOPED_LOCK(rings->lock);
	for (int i = 0; i < SEAL_RINGS_MAX; i++)
		if (rings->ring[i])
			forget_reports(rings->ring[i]);
	begin(context);
}

void seal_rings_replay(struct seal_rings *rings)
{
	SCOPED_LOCK(rings->lock);
	for (int i = 0; i < SEAL_RINGS_MAX; i++)
		if (rings->ring[i])
			replay(rings, rings->ring[i]);
}

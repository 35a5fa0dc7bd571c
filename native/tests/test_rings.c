/* The keeper's side of rings without a service: grants, judgements, and clients that break the rules. Run under
 * ASan, UBSan and TSan as well. */
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include "ring_client.h"

static void test_grant_and_return(void)
{
	struct seal_command granted, returned;
	struct bench b;

	open_bench(&b, 4);
	granted = grant(&b, BLOCK, BLOCK);
	CHECK(granted.done && granted.status == 0);
	CHECK(b.slots[granted.slot].word == granted.word);
	CHECK(b.slots[granted.slot].cookie == 42);
	CHECK(seal_word_state(granted.word) == SEAL_GRANTED);
	returned = about(&b, SEAL_CMD_RETURN, granted);
	CHECK(returned.status == 0 && seal_word_state(returned.word) == SEAL_RETURNED);
	CHECK(about(&b, SEAL_CMD_RETURN, granted).status == -ENOENT);
	CHECK(reports == 0);
	for (int i = 0; i < 4; i++)
		CHECK(grant(&b, 0, BLOCK).status == 0);
	CHECK(grant(&b, 0, BLOCK).status == -ENOSPC);
	close_bench(&b);
}

/* Neither the bytes of commands nor the number of events need be a power of two. */
static void test_any_size(void)
{
	const struct seal_ring_shape shape = {
		.slots = 2, .commands = 13 * 16, .data = 5000, .events = 3};
	const struct seal_ring_event *events;
	struct seal_command granted;
	uint32_t pads = 0;
	struct bench b;

	open_shaped(&b, &shape);
	events = (void *)((char *)b.mailbox + b.mailbox->event_offset);
	for (uint32_t i = 0; i < 1000; i++) {
		const struct seal_ring_event event = {.kind = SEAL_EVENT_ANY, .length = i};

		pads += to_the_end(&b) < sizeof(granted);
		granted = grant(&b, 0, BLOCK);
		CHECK(granted.done && granted.status == 0);
		CHECK(about(&b, SEAL_CMD_RETURN, granted).status == 0);
		CHECK(seal_ring_tell(b.rings, b.ring, &event) == 0);
		CHECK(events[i % 3].length == i && events[i % 3].sequence == i + 1);
		/* Two that are not read yet leave room for one more. */
		if (i >= 2)
			__atomic_store_n(&b.mailbox->event_tail, i - 1, __ATOMIC_RELEASE);
	}
	CHECK(pads > 100 && !(b.mailbox->flags & (SEAL_RING_MISSED | SEAL_RING_BROKEN)));
	for (int i = 0; i < 2; i++)
		CHECK(seal_ring_tell(b.rings, b.ring, &(struct seal_ring_event){0}) == 0);
	CHECK(b.mailbox->flags & SEAL_RING_MISSED);
	close_bench(&b);
}

/* Positions pass their own end: the largest multiple of the size below 2^32. */
static void test_positions_wrap(void)
{
	const struct seal_ring_shape shape = {
		.slots = 2, .commands = (1 << 26) - 7 * 16, .data = 4096, .events = 8};
	struct seal_command granted;
	struct bench b;
	uint32_t before, wraps = 0;

	open_shaped(&b, &shape);
	for (int i = 0; i < 130; i++) {
		before = b.mailbox->command_head;
		granted = grant(&b, 0, BLOCK);
		CHECK(granted.done && granted.status == 0);
		CHECK(about(&b, SEAL_CMD_RETURN, granted).status == 0);
		pad(&b);
		CHECK(seal_ring_poll(b.rings, b.ring, 8) == 1);
		CHECK(b.mailbox->command_tail == b.mailbox->command_head);
		CHECK(b.mailbox->command_head % shape.commands == 0);
		wraps += b.mailbox->command_head < before;
	}
	CHECK(wraps == 2);
	/* No position any more, although it is ahead by less than the ring's size. */
	b.mailbox->command_head = UINT32_MAX - 15;
	CHECK(seal_ring_poll(b.rings, b.ring, 8) == 1 && b.mailbox->flags & SEAL_RING_BROKEN);
	close_bench(&b);
}

static void test_impossible_shapes(void)
{
	const struct seal_ring_shape shapes[] = {
		{.slots = 2,
		 .commands = 13 * 16 + 8,
		 .events = 3}, /* entries would not stay aligned */
		{.slots = 2,
		 .commands = 11 * 16,
		 .events = 3}, /* below two of the longest entries */
		{.slots = 2, .commands = 13 * 16, .events = 1},
		{.slots = 2, .commands = 13 * 16, .events = 3, .data = 4095},
		{.slots = 0, .commands = 13 * 16, .events = 3},
	};
	struct bench b;

	open_bench(&b, 4);
	for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
		CHECK(seal_ring_create(b.rings, &shapes[i]) == -EINVAL);
	close_bench(&b);
}

static void test_refusals(void)
{
	struct bench b;
	struct seal_command granted;

	open_bench(&b, 4);
	CHECK(grant(&b, EXTENT_END, BLOCK).status == -EINVAL);
	CHECK(grant(&b, UINT64_MAX - 1, 4).status == -EINVAL);
	CHECK(grant(&b, 0, 0).status == -EINVAL);
	CHECK(run(&b, (struct seal_command){.op = SEAL_CMD_GRANT, .file = 999, .length = 1})
		      .status == -EBADF);
	CHECK(run(&b, (struct seal_command){.op = 777}).status == -ENOSYS);
	granted = grant(&b, 0, BLOCK);
	granted.word ^= UINT64_C(1) << 32;
	CHECK(about(&b, SEAL_CMD_RETURN, granted).status == -ESTALE);
	granted.slot = UINT32_MAX;
	CHECK(about(&b, SEAL_CMD_RETURN, granted).status == -ENOENT);
	CHECK(run(&b, (struct seal_command){.op = SEAL_CMD_INQUIRE, .slot = UINT32_MAX}).status ==
	      -ENOENT);
	/* What has no place of its own cannot be sealed. */
	CHECK(seal_ring_freshen(b.rings, b.ring, 0, map_of(BLOCK, BLOCK)) == 0);
	CHECK(grant(&b, 0, BLOCK).status == -EOPNOTSUPP);
	CHECK(grant(&b, BLOCK, BLOCK).status == 0);
	CHECK(grant(&b, BLOCK, 2 * BLOCK).status == -EOPNOTSUPP);
	close_bench(&b);
}

/* A PI command of the client's, which the keeper reads when it is polled. */
static struct seal_pi_command *put_pi(struct bench *b, uint16_t op, uint32_t file, uint64_t cookie)
{
	const struct seal_channel_request request = {.cookie = cookie, .op = 77, .offset = BLOCK};
	struct seal_pi_command *entry;

	if (to_the_end(b) < sizeof(*entry))
		pad(b);
	entry = (void *)at_head(b);
	*entry = (struct seal_pi_command){
		.command = {.size = sizeof(*entry), .op = op, .file = file}, .request = request};
	move_head(b, sizeof(*entry));
	CHECK(seal_ring_poll(b->rings, b->ring, 8) >= 1);
	return entry;
}

/* The channel's end of a lane: what it was asked. */
static struct seal_channel_request asked(int channel)
{
	struct seal_channel_request request = {0};

	CHECK(recv(channel, &request, sizeof(request), MSG_DONTWAIT) == sizeof(request));
	return request;
}

static void answer_pi(int channel, uint64_t cookie, int status)
{
	const struct seal_channel_answer answer = {
		.cookie = cookie, .status = status, .error = {.index = 5}};

	CHECK(send(channel, &answer, sizeof(answer), 0) == sizeof(answer));
}

static int is_done(const struct seal_pi_command *entry)
{
	return __atomic_load_n(&entry->command.done, __ATOMIC_ACQUIRE) != 0;
}

static void wait_done(const struct seal_pi_command *entry)
{
	for (int i = 0; i < 30000 && !is_done(entry); i++)
		usleep(1000);
	CHECK(is_done(entry));
}

static int open_lane(struct bench *b)
{
	int ends[2];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
	CHECK(seal_ring_channel(b->rings, b->ring, 0, ends[0]) == 0);
	return ends[1];
}

static void test_pi_commands(void)
{
	struct seal_pi_command *first, *second;
	struct seal_command shorter;
	struct seal_channel_request request;
	struct bench b;
	int channel;

	open_bench(&b, 4);
	CHECK(seal_rings_start(b.rings) == 0);
	/* Answered at once: there is no registration, no channel, no request. */
	first = put_pi(&b, SEAL_CMD_PI_READ, 9, 1);
	CHECK(is_done(first) && first->command.status == -EBADF);
	CHECK(first->answer.status == -EBADF && first->answer.cookie == 0);
	first = put_pi(&b, SEAL_CMD_PI_READ, 0, 1);
	CHECK(is_done(first) && first->command.status == -ESTALE);
	CHECK(seal_ring_channel(b.rings, b.ring, 9, dup(0)) == -ENOENT);
	channel = open_lane(&b);
	shorter = run(&b, (struct seal_command){.op = SEAL_CMD_PI_READ});
	CHECK(shorter.status == -EINVAL);
	/* Two in flight; the op is the command's, all else of the request arrives as it is. */
	first = put_pi(&b, SEAL_CMD_PI_WRITE, 0, 11);
	second = put_pi(&b, SEAL_CMD_PI_READ, 0, 12);
	CHECK(!is_done(first) && !is_done(second));
	request = asked(channel);
	CHECK(request.op == SEAL_CHANNEL_WRITE && request.cookie == 11 && request.offset == BLOCK);
	CHECK(asked(channel).op == SEAL_CHANNEL_READ);
	answer_pi(channel, 11, -EILSEQ);
	wait_done(first);
	CHECK(first->command.status == -EILSEQ && first->answer.error.index == 5);
	CHECK(!is_done(second));
	answer_pi(channel, 12, 0);
	wait_done(second);
	CHECK(second->command.status == 0 && second->answer.cookie == 12);
	/* The channel ends: commands in flight fail with ESTALE, and so do later ones. */
	first = put_pi(&b, SEAL_CMD_PI_READ, 0, 13);
	close(channel);
	wait_done(first);
	CHECK(first->command.status == -ESTALE && first->answer.status == -ESTALE);
	first = put_pi(&b, SEAL_CMD_PI_READ, 0, 14);
	CHECK(is_done(first) && first->command.status == -ESTALE);
	/* So it is with another in its place, with an answer to nothing, and with the registration's end. */
	channel = open_lane(&b);
	first = put_pi(&b, SEAL_CMD_PI_READ, 0, 15);
	close(channel);
	channel = open_lane(&b);
	wait_done(first);
	CHECK(first->command.status == -ESTALE);
	answer_pi(channel, 0, 0);
	for (int i = 0; i < 30000 && recv(channel, &request, 1, MSG_DONTWAIT) != 0; i++)
		usleep(1000);
	first = put_pi(&b, SEAL_CMD_PI_READ, 0, 16);
	CHECK(first->command.status == -ESTALE);
	close(channel);
	channel = open_lane(&b);
	first = put_pi(&b, SEAL_CMD_PI_READ, 0, 17);
	CHECK(!is_done(first));
	CHECK(seal_ring_unregister(b.rings, b.ring, 0, SEAL_RETURNED) == 0);
	CHECK(is_done(first) && first->command.status == -ESTALE);
	close(channel);
	close_bench(&b);
}

static void test_no_more_pi_commands_in_flight_than_room(void)
{
	struct seal_pi_command *entry;
	unsigned taken = 0;
	struct bench b;
	int channel;

	open_bench(&b, 4);
	channel = open_lane(&b);
	/* No thread reads the answers: commands stay in flight until there are too many. Earlier entries may be
	 * overwritten, and are not looked at again. */
	while (!is_done(entry = put_pi(&b, SEAL_CMD_PI_READ, 0, taken)) && taken < 1000)
		taken++;
	CHECK(entry->command.status == -EAGAIN);
	CHECK(taken > 0 && taken <= SEAL_RING_PENDING);
	close_bench(&b);
	close(channel);
}

static void test_conflicts(void)
{
	struct seal_command granted, other;
	uint64_t unproven;
	struct bench b;
	int error;

	open_bench(&b, 4);
	granted = grant(&b, 0, BLOCK);
	other = grant(&b, 2 * BLOCK, BLOCK);
	/* In nobody's way: it passes, and the map is not known any more. */
	CHECK(judge(&b, SEAL_OP_PUNCH, BLOCK, BLOCK, 0, 0, &error, &unproven) == -1);
	CHECK(seal_ring_is_stale(b.rings, b.ring, 0) == 1);
	CHECK(b.slots[granted.slot].word == granted.word && reports == 0);
	/* It meets a seal, which is recalled on the spot, once. */
	CHECK(judge(&b, SEAL_OP_PUNCH, 0, BLOCK, 0, 0, &error, &unproven) == SEAL_POLICY_WAIT);
	CHECK(!error && !unproven && reports == 1 && last.kind == SEAL_RING_ADOPTED);
	CHECK(seal_word_state(b.slots[granted.slot].word) == SEAL_RECALLED);
	CHECK(seal_word_seqid(b.slots[granted.slot].word) == seal_word_seqid(granted.word) + 1);
	CHECK(b.mailbox->event_head == 1);
	CHECK(judge(&b, SEAL_OP_PUNCH, 0, BLOCK, 0, 0, &error, &unproven) == SEAL_POLICY_WAIT);
	CHECK(reports == 1);
	/* The holder's own conflict is answered at once. */
	CHECK(judge(&b, SEAL_OP_PUNCH, 2 * BLOCK, BLOCK, 1, 0, &error, &unproven) >= 0);
	CHECK(error == EBUSY && b.slots[other.slot].word == other.word);
	/* What was given back without a proof is asked for. */
	CHECK(about(&b, SEAL_CMD_RETURN, other).status == 0);
	CHECK(judge(&b, SEAL_OP_PUNCH, 2 * BLOCK, BLOCK, 0, 0, &error, &unproven) ==
	      SEAL_POLICY_WAIT);
	CHECK(unproven == 7);
	CHECK(judge(&b, SEAL_OP_PUNCH, 2 * BLOCK, BLOCK, 0, 1, &error, &unproven) == -1);
	close_bench(&b);
}

static void begin(void *context)
{
	(void)context;
}

static void test_forwarding(void)
{
	struct seal_command granted, mapped;
	struct bench b;
	uint64_t unproven;
	int error;

	open_bench(&b, 4);
	granted = grant(&b, 0, BLOCK);
	mapped = about(&b, SEAL_CMD_MAPPED, granted);
	CHECK(!mapped.done && reports == 1 && last.kind == SEAL_RING_FORWARD);
	/* Its state is the service's now: a conflict waits, and is the service's to see to. */
	CHECK(judge(&b, SEAL_OP_PUNCH, 0, BLOCK, 0, 0, &error, &unproven) == SEAL_POLICY_WAIT);
	CHECK(b.slots[granted.slot].word == granted.word && reports == 1);
	CHECK(seal_slot_quiet(b.rings, b.ring, granted.slot, last.seal.id) == 0);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, -EFAULT, 0) == 0);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0, 0) == -ENOENT);
	CHECK(judge(&b, SEAL_OP_PUNCH, 0, BLOCK, 0, 0, &error, &unproven) == SEAL_POLICY_WAIT);
	CHECK(reports == 2 && seal_word_state(b.slots[granted.slot].word) == SEAL_RECALLED);
	/* What nobody finishes is aborted. */
	about(&b, SEAL_CMD_RETURN,
	      (struct seal_command){.slot = granted.slot, .word = b.slots[granted.slot].word});
	CHECK(reports == 3);
	seal_rings_tick(b.rings, UINT64_MAX / 4);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0, 0) == -ENOENT);
	/* Not more at a time than there is room for. */
	CHECK(seal_ring_close(b.rings, b.ring, 0, 0, 0, 0) == 0);
	for (int i = 0; i < SEAL_RING_PENDING; i++)
		CHECK(!grant(&b, 0, BLOCK).done);
	CHECK(grant(&b, 0, BLOCK).status == -EAGAIN);
	/* Once to each service: it would carry a command out twice, and bring a seal that has ended in
	 * between to life again. */
	reports = 0;
	seal_rings_replay(b.rings);
	CHECK(reports == 0);
	seal_rings_hand_over(b.rings, begin, NULL);
	CHECK(reports == 0 && b.slots[granted.slot].adopted);
	seal_rings_replay(b.rings);
	CHECK(reports == SEAL_RING_PENDING + 1);
	seal_rings_replay(b.rings);
	CHECK(reports == SEAL_RING_PENDING + 1);
	close_bench(&b);
}

static void test_copies(void)
{
	struct seal_command copy = {
		.op = SEAL_CMD_COPY_RANGE, .length = 2 * BLOCK, .cookie = 8 * BLOCK};
	struct seal_command wrong = copy, *entry;
	struct bench b;

	open_bench(&b, 4);
	grant(&b, 0, BLOCK); /* slot 0 is a seal, and the file 0 has nothing to do with it */
	wrong.slot = 1;
	CHECK(run(&b, wrong).status == -EBADF);
	wrong = copy;
	wrong.length = 0;
	CHECK(run(&b, wrong).status == -EINVAL);
	wrong.length = EXTENT_END;
	CHECK(run(&b, wrong).status == -EINVAL);
	wrong.cookie = UINT64_MAX - BLOCK;
	CHECK(run(&b, wrong).status == -EINVAL && reports == 0);
	wrong = copy;
	wrong.cookie = BLOCK;
	CHECK(run(&b, wrong).status == -EINVAL && reports == 0);
	entry = put(&b, copy);
	CHECK(seal_ring_poll(b.rings, b.ring, 8) == 1);
	CHECK(!entry->done && reports == 1 && last.kind == SEAL_RING_FORWARD);
	CHECK(last.file == 0 && last.command.cookie == copy.cookie && !b.slots[0].adopted);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0, BLOCK) == 0);
	CHECK(entry->done && entry->status == 0 && entry->word == BLOCK);
	CHECK(seal_ring_close(b.rings, b.ring, 0, 0, 0, 0) == 0);
	CHECK(run(&b, copy).status == -EAGAIN);
	close_bench(&b);
}

static void test_ends_of_seals_that_were_told_of(void)
{
	struct seal_command known, unknown;
	struct bench b;

	open_bench(&b, 4);
	known = grant(&b, 0, BLOCK);
	about(&b, SEAL_CMD_MAPPED, known);
	CHECK(seal_slot_quiet(b.rings, b.ring, known.slot, last.seal.id) == 0);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0, 0) == 0 && reports == 1);
	CHECK(about(&b, SEAL_CMD_RETURN, known).status == 0);
	CHECK(reports == 2 && last.kind == SEAL_RING_OVER && last.slot == known.slot);
	CHECK(seal_word_state(last.seal.word) == SEAL_GRANTED);
	CHECK(seal_word_state(last.handle) == SEAL_RETURNED);
	/* The next in the slot is another. */
	unknown = grant(&b, 0, BLOCK);
	CHECK(unknown.slot == known.slot);
	CHECK(about(&b, SEAL_CMD_RETURN, unknown).status == 0 && reports == 2);
	/* One ends with its registration. */
	known = grant(&b, 0, BLOCK);
	about(&b, SEAL_CMD_MAPPED, known);
	CHECK(seal_slot_quiet(b.rings, b.ring, known.slot, last.seal.id) == 0);
	grant(&b, 0, BLOCK);
	CHECK(seal_ring_unregister(b.rings, b.ring, 0, SEAL_RETURNED) == 0);
	CHECK(reports == 4 && last.kind == SEAL_RING_OVER && last.slot == known.slot);
	close_bench(&b);
}

static void test_counters(void)
{
	struct seal_ring_counters counted;
	struct seal_command granted;
	struct bench b;

	open_bench(&b, 64);
	granted = grant(&b, 0, BLOCK);
	about(&b, SEAL_CMD_RETURN, granted);
	for (int i = 0; i < 20; i++)
		grant(&b, (uint64_t)i * BLOCK, BLOCK);
	run(&b, (struct seal_command){.op = 999});
	about(&b, SEAL_CMD_MAPPED, granted); /* of a seal that is over */
	CHECK(seal_ring_close(b.rings, b.ring, 0, 1, 0, UINT64_MAX) == 0);
	grant(&b, 0, BLOCK);
	b.mailbox->command_head++;
	CHECK(seal_ring_poll(b.rings, b.ring, 8) == 1);
	seal_rings_count(b.rings, &counted);
	CHECK(counted.commands[SEAL_CMD_GRANT] == 22 && counted.commands[SEAL_CMD_RETURN] == 1);
	CHECK(counted.commands[SEAL_CMD_MAPPED] == 1 && counted.commands[SEAL_CMD_RENEW] == 0);
	CHECK(counted.commands[SEAL_RING_OPCODES - 1] == 1);
	CHECK(counted.forwarded == 1 && counted.broken == 1 && counted.dropped == 12);
	CHECK(counted.rung == 0 && counted.spared > 20);
	close_bench(&b);
}

static void break_with(uint32_t head, struct seal_command entry)
{
	struct bench b;

	open_bench(&b, 4);
	memcpy(b.commands, &entry, sizeof(entry));
	b.mailbox->command_head = head;
	CHECK(seal_ring_poll(b.rings, b.ring, 8) == 1);
	CHECK(b.mailbox->flags & SEAL_RING_BROKEN);
	CHECK(seal_ring_poll(b.rings, b.ring, 8) == 0);
	close_bench(&b);
}

static void test_a_client_that_breaks_the_rules(void)
{
	const uint32_t size = sizeof(struct seal_command);
	const struct seal_command nop = {.size = size, .op = SEAL_CMD_NOP};

	break_with(1, nop);
	break_with(UINT32_MAX - 15, nop);
	break_with(4096 + 16, nop);
	break_with(size, (struct seal_command){.size = 0, .op = SEAL_CMD_NOP});
	break_with(size, (struct seal_command){.size = 17, .op = SEAL_CMD_NOP});
	break_with(size, (struct seal_command){.size = 16, .op = SEAL_CMD_NOP});
	break_with(size, (struct seal_command){.size = size + 16, .op = SEAL_CMD_NOP});
	break_with(size, (struct seal_command){.size = UINT32_MAX - 15, .op = SEAL_CMD_PAD});
	break_with(4096,
		   (struct seal_command){.size = SEAL_RING_MAX_ENTRY + 16, .op = SEAL_CMD_NOP});
}

static void test_a_client_that_does_not_read(void)
{
	struct bench b;

	open_bench(&b, 64);
	for (int i = 0; i < 20; i++)
		grant(&b, (uint64_t)i * BLOCK, BLOCK);
	CHECK(seal_ring_close(b.rings, b.ring, 0, 1, 0, UINT64_MAX) == 0);
	CHECK(reports == 20);
	CHECK(b.mailbox->event_head == 8 && (b.mailbox->flags & SEAL_RING_MISSED));
	close_bench(&b);
}

static void test_ttl(void)
{
	struct seal_command granted, renewed;
	uint64_t unproven;
	struct bench b;
	int error;

	open_bench(&b, 4);
	granted = run(&b, (struct seal_command){.op = SEAL_CMD_GRANT,
						.length = BLOCK,
						.iomode = SEAL_RW,
						.ttl = 1000000});
	seal_rings_tick(b.rings, UINT64_MAX / 4);
	CHECK(seal_word_state(b.slots[granted.slot].word) == SEAL_COURTESY);
	granted.word = b.slots[granted.slot].word;
	renewed = run(&b, (struct seal_command){.op = SEAL_CMD_RENEW,
						.slot = granted.slot,
						.word = granted.word,
						.ttl = 1000000});
	CHECK(seal_word_state(renewed.word) == SEAL_GRANTED);
	seal_rings_tick(b.rings, UINT64_MAX / 4);
	/* One that is kept by courtesy stands in nobody's way, once it is known not to be mapped. */
	CHECK(judge(&b, SEAL_OP_PUNCH, 0, BLOCK, 0, 0, &error, &unproven) == SEAL_POLICY_WAIT);
	CHECK(unproven == 7 && reports == 0);
	CHECK(seal_word_state(b.slots[granted.slot].word) == SEAL_EXPIRED);
	close_bench(&b);
}

static void test_the_end_of_a_registration(void)
{
	struct seal_command granted;
	struct bench b;

	open_bench(&b, 4);
	granted = grant(&b, 0, BLOCK);
	CHECK(seal_ring_drop(b.rings, b.ring) == -EBUSY);
	CHECK(seal_ring_unregister(b.rings, b.ring, 0, SEAL_REVOKED) == 0);
	CHECK(seal_word_state(b.slots[granted.slot].word) == SEAL_REVOKED);
	CHECK(about(&b, SEAL_CMD_RETURN, granted).status == -ENOENT);
	CHECK(grant(&b, 0, BLOCK).status == -EBADF);
	CHECK(seal_ring_drop(b.rings, b.ring) == 0);
	CHECK(b.mailbox->flags & SEAL_RING_GONE);
	CHECK(seal_ring_poll(b.rings, b.ring, 1) == 0);
	close_bench(&b);
}

static void test_extents(void)
{
	struct seal_command answer;
	struct bench b;

	open_bench(&b, 4);
	answer = run(&b, (struct seal_command){
				 .op = SEAL_CMD_EXTENTS, .length = BLOCK, .data_length = 64});
	CHECK(answer.status == 0 && answer.count == 1);
	CHECK(((struct seal_map_extent *)((char *)b.mailbox + b.mailbox->data_offset))->length ==
	      EXTENT_END);
	CHECK(run(&b, (struct seal_command){.op = SEAL_CMD_EXTENTS, .length = BLOCK}).status ==
	      -ENOBUFS);
	CHECK(run(&b, (struct seal_command){.op = SEAL_CMD_EXTENTS, .length = 1, .data = 8192})
		      .status == -EINVAL);
	CHECK(run(&b,
		  (struct seal_command){
			  .op = SEAL_CMD_EXTENTS, .length = 1, .data = 4088, .data_length = 4096})
		      .status == -EINVAL);
	close_bench(&b);
}

/* While the canary passes what must be refused: forwarded, and of no use to try again at once. */
static void test_suspended(void)
{
	struct seal_command *entry;
	struct bench b;

	open_bench(&b, 4);
	CHECK(grant(&b, 0, BLOCK).status == 0);
	seal_rings_suspend(b.rings, 1);
	entry = (void *)(b.commands + (b.mailbox->command_head & 4095));
	CHECK(!grant(&b, BLOCK, BLOCK).done);
	CHECK(reports == 1 && last.kind == SEAL_RING_FORWARD);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, SEAL_RING_AGAIN, 0) == 0);
	CHECK(entry->done && entry->status == -EAGAIN);
	seal_rings_suspend(b.rings, 0);
	CHECK(grant(&b, BLOCK, BLOCK).done && reports == 1);
	close_bench(&b);
}

int main(void)
{
	test_suspended();
	test_grant_and_return();
	test_copies();
	test_ends_of_seals_that_were_told_of();
	test_counters();
	test_refusals();
	test_any_size();
	test_positions_wrap();
	test_impossible_shapes();
	test_pi_commands();
	test_no_more_pi_commands_in_flight_than_room();
	test_conflicts();
	test_forwarding();
	test_a_client_that_breaks_the_rules();
	test_a_client_that_does_not_read();
	test_ttl();
	test_the_end_of_a_registration();
	test_extents();
	return 0;
}

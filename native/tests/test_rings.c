/* The keeper's side of rings without a service: grants, judgements, misbehaviour, and, with threads, the
 * doorbells. Run under ASan, UBSan and TSan as well. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "sealsvc/rings.h"

#define BLOCK 4096u
#define EXTENT_END (64u * BLOCK)

static unsigned reports;
static struct seal_ring_report last;

static void deliver(void *context, const struct seal_ring_report *report)
{
	(void)context;
	last = *report;
	reports++;
}

/* A ring with one registered range, and the client's view of both. */
struct bench {
	pthread_mutex_t lock;
	struct seal_rings *rings;
	uint32_t ring, file;
	int fds[SEAL_RING_FDS];
	struct seal_mailbox *mailbox;
	char *commands;
	const struct seal_slot *slots;
	size_t size, table_size;
};

static int map_of(uint64_t logical, uint64_t length)
{
	const struct seal_map_extent extent = {logical, 1 << 20, length, 0};
	int fd = memfd_create("map", MFD_CLOEXEC);

	CHECK(write(fd, &extent, sizeof(extent)) == sizeof(extent));
	return fd;
}

static void open_bench(struct bench *b, uint32_t slots)
{
	const struct seal_ring_shape shape = {
		.slots = slots, .commands = 4096, .data = 4096, .events = 8};
	const struct seal_registration registration = {
		.id = 7,
		.end = EXTENT_END,
		.grace = 1000000000,
		.block_size = BLOCK,
		.policy = SEAL_POLICY_WAIT,
		.iomode = SEAL_RW,
		.watched = 1,
	};
	int64_t made;

	memset(b, 0, sizeof(*b));
	pthread_mutex_init(&b->lock, NULL);
	CHECK(seal_rings_open(&b->rings, &b->lock, deliver, NULL) == 0);
	made = seal_ring_create(b->rings, &shape);
	CHECK(made >= 0);
	b->ring = (uint32_t)made;
	made = seal_ring_register(b->rings, b->ring, &registration, -1);
	CHECK(made == 0);
	CHECK(seal_ring_freshen(b->rings, b->ring, 0, map_of(0, EXTENT_END)) == 0);
	CHECK(seal_ring_descriptors(b->rings, b->ring, b->fds) == 0);
	b->size = (size_t)lseek(b->fds[SEAL_RING_FD_MEMORY], 0, SEEK_END);
	b->table_size = slots * sizeof(struct seal_slot);
	b->mailbox = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  b->fds[SEAL_RING_FD_MEMORY], 0);
	b->slots = mmap(NULL, b->table_size, PROT_READ, MAP_SHARED, b->fds[SEAL_RING_FD_TABLE], 0);
	CHECK(b->mailbox != MAP_FAILED && b->slots != MAP_FAILED);
	b->commands = (char *)b->mailbox + b->mailbox->command_offset;
	reports = 0;
}

static void close_bench(struct bench *b)
{
	seal_rings_close(b->rings);
	munmap(b->mailbox, b->size);
	munmap((void *)b->slots, b->table_size);
	for (int i = 0; i < SEAL_RING_FDS; i++)
		close(b->fds[i]);
	pthread_mutex_destroy(&b->lock);
}

/* Put a command, have it served, and look at its completion. */
static struct seal_command run(struct bench *b, struct seal_command command)
{
	uint32_t head = b->mailbox->command_head, place = head & 4095;
	struct seal_command *entry = (void *)(b->commands + place);

	if (4096 - place < sizeof(command)) {
		entry->size = 4096 - place;
		entry->op = SEAL_CMD_PAD;
		head += entry->size;
		entry = (void *)b->commands;
	}
	command.size = sizeof(command);
	*entry = command;
	__atomic_store_n(&b->mailbox->command_head, head + (uint32_t)sizeof(command),
			 __ATOMIC_RELEASE);
	CHECK(seal_ring_poll(b->rings, b->ring, 8) >= 1);
	return *entry;
}

static struct seal_command grant(struct bench *b, uint64_t offset, uint64_t length)
{
	return run(b, (struct seal_command){.op = SEAL_CMD_GRANT,
					    .offset = offset,
					    .length = length,
					    .iomode = SEAL_RW,
					    .cookie = 42});
}

static struct seal_command about(struct bench *b, uint16_t op, struct seal_command of)
{
	return run(b, (struct seal_command){.op = op, .slot = of.slot, .word = of.word});
}

static int judge(struct bench *b, int op, uint64_t offset, uint64_t length, int own, int absolved,
		 int *error, uint64_t *unproven)
{
	const struct seal_operation operation = {.op = op, .offset = offset, .length = length};
	const struct seal_traits traits = {.block_size = BLOCK};
	int policy;

	*error = 0;
	*unproven = 0;
	pthread_mutex_lock(&b->lock);
	policy = seal_rings_judge(b->rings, seal_ring_key(b->ring, 0), &operation, &traits, own,
				  absolved, error, unproven);
	pthread_mutex_unlock(&b->lock);
	return policy;
}

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
	CHECK(run(&b, (struct seal_command){.op = SEAL_CMD_PI_VERIFY}).status == -ENOSYS);
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
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, -EFAULT) == 0);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0) == -ENOENT);
	CHECK(judge(&b, SEAL_OP_PUNCH, 0, BLOCK, 0, 0, &error, &unproven) == SEAL_POLICY_WAIT);
	CHECK(reports == 2 && seal_word_state(b.slots[granted.slot].word) == SEAL_RECALLED);
	/* What nobody finishes is aborted. */
	about(&b, SEAL_CMD_RETURN,
	      (struct seal_command){.slot = granted.slot, .word = b.slots[granted.slot].word});
	CHECK(reports == 3);
	seal_rings_tick(b.rings, UINT64_MAX / 4);
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0) == -ENOENT);
	/* Not more at a time than there is room for. */
	CHECK(seal_ring_close(b.rings, b.ring, 0, 0, 0, 0) == 0);
	for (int i = 0; i < SEAL_RING_PENDING; i++)
		CHECK(!grant(&b, 0, BLOCK).done);
	CHECK(grant(&b, 0, BLOCK).status == -EAGAIN);
	reports = 0;
	seal_rings_replay(b.rings);
	CHECK(reports == SEAL_RING_PENDING + 1);
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
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, 0) == 0 && reports == 1);
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
	break_with(4096, (struct seal_command){.size = 112, .op = SEAL_CMD_NOP});
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

/* A client in a thread of its own, the keeper's thread, and one that plays the gate. No doorbell may
 * be lost: a command that is not done after two seconds is one. */
struct play {
	struct bench *bench;
	int stop;
};

static void wait_done(struct bench *b, struct seal_command *entry)
{
	struct epoll_event event;

	while (!__atomic_load_n(&entry->done, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&b->mailbox->bell_wanted, 1, __ATOMIC_RELAXED);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&entry->done, __ATOMIC_ACQUIRE))
			return;
		CHECK(epoll_wait(b->fds[SEAL_RING_FD_BELL], &event, 1, 2000) == 1);
	}
}

static struct seal_command ask(struct bench *b, struct seal_command command)
{
	const uint64_t one = 1;
	uint32_t head = b->mailbox->command_head;
	struct seal_command *entry = (void *)(b->commands + (head & 4095));

	if (4096 - (head & 4095) < sizeof(command)) {
		entry->size = 4096 - (head & 4095);
		entry->op = SEAL_CMD_PAD;
		head += entry->size;
		entry = (void *)b->commands;
	}
	command.size = sizeof(command);
	*entry = command;
	__atomic_store_n(&b->mailbox->command_head, head + (uint32_t)sizeof(command),
			 __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&b->mailbox->kick_wanted, __ATOMIC_RELAXED) &&
	    __atomic_exchange_n(&b->mailbox->kick_wanted, 0, __ATOMIC_RELAXED))
		CHECK(write(b->fds[SEAL_RING_FD_KICK], &one, sizeof(one)) == sizeof(one));
	wait_done(b, entry);
	return *entry;
}

static void *play_gate(void *argument)
{
	struct play *play = argument;
	uint64_t unproven;
	int error;

	while (!__atomic_load_n(&play->stop, __ATOMIC_ACQUIRE)) {
		CHECK(judge(play->bench, SEAL_OP_PUNCH, 32 * BLOCK, BLOCK, 0, 0, &error,
			    &unproven) == SEAL_POLICY_WAIT);
		seal_ring_freshen(play->bench->rings, play->bench->ring, 0, map_of(0, EXTENT_END));
	}
	return NULL;
}

static void test_doorbells(uint32_t spin_us)
{
	struct play play = {0};
	pthread_t gate;
	struct bench b;

	open_bench(&b, 8);
	play.bench = &b;
	/* The one that the gate meets again and again. */
	CHECK(grant(&b, 32 * BLOCK, BLOCK).status == 0);
	seal_rings_spin(b.rings, spin_us);
	CHECK(seal_rings_start(b.rings) == 0);
	CHECK(pthread_create(&gate, NULL, play_gate, &play) == 0);
	for (int i = 0; i < 10000; i++) {
		struct seal_command granted;

		/* Now and then the thread has gone to sleep, or is about to. */
		if (i % 100 == 0)
			usleep(spin_us);
		granted = ask(&b, (struct seal_command){.op = SEAL_CMD_GRANT,
							.offset = BLOCK,
							.length = BLOCK,
							.iomode = SEAL_RW});

		if (granted.status == 0)
			CHECK(ask(&b, (struct seal_command){.op = SEAL_CMD_RETURN,
							    .slot = granted.slot,
							    .word = granted.word})
				      .status == 0);
	}
	__atomic_store_n(&play.stop, 1, __ATOMIC_RELEASE);
	pthread_join(gate, NULL);
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
	CHECK(seal_ring_complete(b.rings, b.ring, last.handle, SEAL_RING_AGAIN) == 0);
	CHECK(entry->done && entry->status == -EAGAIN);
	seal_rings_suspend(b.rings, 0);
	CHECK(grant(&b, BLOCK, BLOCK).done && reports == 1);
	close_bench(&b);
}

int main(void)
{
	test_suspended();
	test_grant_and_return();
	test_ends_of_seals_that_were_told_of();
	test_counters();
	test_refusals();
	test_conflicts();
	test_forwarding();
	test_a_client_that_breaks_the_rules();
	test_a_client_that_does_not_read();
	test_ttl();
	test_the_end_of_a_registration();
	test_extents();
	test_doorbells(0);
	test_doorbells(30);
	return 0;
}

/* Doorbells between a client's thread, the keeper's thread, and one that plays the gate. Run under ASan, UBSan and
 * TSan as well. */
#include <sys/epoll.h>

#include "ring_client.h"

/* No doorbell may be lost: a command that is not done after two seconds is one. */
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
	struct seal_command *entry = put(b, command);

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

int main(void)
{
	test_doorbells(0);
	test_doorbells(30);
	return 0;
}

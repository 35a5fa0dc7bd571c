/* Our side of the ring: seal_ring.h says what is written when. */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static uint32_t size_of(uint16_t op)
{
	return op == SEAL_CMD_PI_WRITE || op == SEAL_CMD_PI_READ ? sizeof(struct seal_pi_command)
								 : sizeof(struct seal_command);
}

uint64_t client_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static struct seal_command *entry_at(const struct seal_client *client, uint32_t position)
{
	return (void *)(client->commands + ring_place(client->command_ring, position));
}

static int is_over(const struct seal_client *client)
{
	return (__atomic_load_n(&client->mailbox->flags, __ATOMIC_ACQUIRE) &
		(SEAL_RING_BROKEN | SEAL_RING_GONE)) != 0;
}

/* 1 when nobody needs the entry any more. */
static int is_through(const struct seal_command *entry)
{
	if (entry->op == SEAL_CMD_PAD)
		return 1;
	return __atomic_load_n(&entry->done, __ATOMIC_ACQUIRE) && (entry->flags & ENTRY_DELIVERED);
}

/* Whether `to` is ahead of `from`, and not behind it: they are never further apart than the ring is long. */
static int is_ahead(const struct seal_client *client, uint32_t from, uint32_t to)
{
	return to != from &&
	       ring_ahead(client->command_ring, from, to) <= client->command_ring.size;
}

void ring_reap(struct seal_client *client)
{
	while (client->reaped != client->head) {
		struct seal_command *entry = entry_at(client, client->reaped);

		/* A PAD counts only when the keeper has read it. */
		if (!is_through(entry) ||
		    (entry->op == SEAL_CMD_PAD &&
		     !is_ahead(client, client->reaped,
			       __atomic_load_n(&client->mailbox->command_tail, __ATOMIC_ACQUIRE))))
			break;
		client->reaped = ring_forward(client->command_ring, client->reaped, entry->size);
	}
	__atomic_store_n(&client->mailbox->reaped, client->reaped, __ATOMIC_RELEASE);
}

static int has_room(struct seal_client *client, uint32_t size)
{
	struct ring_geometry ring = client->command_ring;

	if (ring_ahead(ring, client->reaped, client->head) + size > ring.size)
		ring_reap(client);
	return ring_ahead(ring, client->reaped, client->head) + size <= ring.size;
}

int64_t ring_put(struct seal_client *client, const struct seal_command *command, uint16_t flags)
{
	uint32_t place = ring_place(client->command_ring, client->head);
	uint32_t rest = client->command_ring.size - place, size = size_of(command->op);
	uint32_t padding = rest < size ? rest : 0;
	struct seal_command *entry;

	if (!has_room(client, padding + size))
		return -EAGAIN;
	if (padding) {
		entry = entry_at(client, client->head);
		entry->size = padding;
		entry->op = SEAL_CMD_PAD;
		client->head = ring_forward(client->command_ring, client->head, padding);
	}
	place = ring_place(client->command_ring, client->head);
	entry = entry_at(client, client->head);
	memcpy(entry, command, size);
	entry->size = size;
	entry->flags = flags;
	entry->id = ++client->next_id;
	entry->done = 0;
	client->head = ring_forward(client->command_ring, client->head, size);
	/* The entry before the head. */
	__atomic_store_n(&client->mailbox->command_head, client->head, __ATOMIC_RELEASE);
	return place;
}

int ring_kick(struct seal_client *client)
{
	const eventfd_t one = 1;

	/* The head before the look: the keeper sets the flag before its last look at the head. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&client->mailbox->kick_wanted, __ATOMIC_RELAXED) ||
	    !__atomic_exchange_n(&client->mailbox->kick_wanted, 0, __ATOMIC_RELAXED))
		return 0;
	/* EAGAIN: the count is full, and the keeper awake. */
	if (write(client->fds[KICK], &one, sizeof(one)) < 0 && errno != EAGAIN)
		return -errno;
	return 0;
}

static int is_done(const struct seal_command *entry)
{
	return __atomic_load_n(&entry->done, __ATOMIC_ACQUIRE) != 0;
}

/* 1 when it was done within so many looks. */
static int spin(const struct seal_command *entry, uint32_t looks)
{
	while (looks--) {
		if (is_done(entry))
			return 1;
#if defined(__x86_64__)
		__builtin_ia32_pause();
#endif
	}
	return is_done(entry);
}

static void want_bell(struct seal_client *client)
{
	__atomic_store_n(&client->mailbox->bell_wanted, 1, __ATOMIC_RELAXED);
	/* Before our last look: the keeper publishes before it looks at the flag. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static int sleep_until(struct seal_client *client, const struct seal_command *entry,
		       uint64_t deadline)
{
	while (!is_done(entry)) {
		struct epoll_event event;
		uint64_t now = client_now_ns();

		if (is_over(client))
			return -EPIPE;
		if (now >= deadline)
			return -ETIMEDOUT;
		want_bell(client);
		if (is_done(entry))
			break;
		if (epoll_wait(client->fds[BELL], &event, 1,
			       (int)((deadline - now) / 1000000) + 1) < 0 &&
		    errno != EINTR)
			return -errno;
	}
	return 0;
}

/* Looking that leads to nothing, as on a single processor, is given up; now and then it is tried. */
static void adapt(struct seal_client *client, int seen)
{
	uint32_t most = client->options.spin;

	if (seen)
		client->spin = client->spin > most / 2 ? most : 2 * client->spin;
	else
		client->spin /= 2;
	if (!client->spin && client->next_id % 64 == 0)
		client->spin = most;
}

int ring_wait(struct seal_client *client, uint32_t place, struct seal_command *out)
{
	struct seal_command *entry = (void *)(client->commands + place);
	uint64_t deadline;
	int error = 0;

	if (client->options.spin)
		__atomic_store_n(&client->mailbox->bell_wanted, 0, __ATOMIC_RELAXED);
	adapt(client, spin(entry, client->spin));
	if (__builtin_add_overflow(client_now_ns(), client->options.timeout, &deadline))
		deadline = UINT64_MAX;
	if (!is_done(entry))
		error = sleep_until(client, entry, deadline);
	memcpy(out, entry, size_of(entry->op));
	/* When the time was up: whenever it is done, nobody waits for it. */
	entry->flags |= ENTRY_DELIVERED;
	ring_rest(client);
	return error;
}

static int has_news(const struct seal_client *client)
{
	return __atomic_load_n(&client->mailbox->event_head, __ATOMIC_ACQUIRE) !=
	       client->event_tail;
}

/* A completion that the bell told of, and that our waiting for another took the ring of. */
static int has_completions(const struct seal_client *client)
{
	for (uint32_t at = client->reaped; at != client->head;) {
		const struct seal_command *entry = entry_at(client, at);

		if (entry->op != SEAL_CMD_PAD && is_done(entry) &&
		    !(entry->flags & (ENTRY_DELIVERED | ENTRY_WAITED)))
			return 1;
		at = ring_forward(client->command_ring, at, entry->size);
	}
	return 0;
}

void ring_rest(struct seal_client *client)
{
	ring_reap(client);
	want_bell(client);
	if (has_news(client) || has_completions(client))
		eventfd_write(client->self, 1);
}

static int deliver_completions(struct seal_client *client)
{
	int count = 0;

	for (uint32_t at = client->reaped; at != client->head;) {
		struct seal_command *entry = entry_at(client, at);
		struct seal_completion done;
		struct seal_channel_answer answer;

		at = ring_forward(client->command_ring, at, entry->size);
		if (entry->op == SEAL_CMD_PAD || !is_done(entry) ||
		    (entry->flags & (ENTRY_DELIVERED | ENTRY_WAITED)))
			continue;
		done = (struct seal_completion){entry->id,   entry->status, entry->slot,
						entry->word, entry->count,  NULL};
		if (size_of(entry->op) == sizeof(struct seal_pi_command)) {
			/* Whatever the callback submits may lie where this entry did. */
			answer = ((struct seal_pi_command *)entry)->answer;
			done.pi = &answer;
		}
		entry->flags |= ENTRY_DELIVERED;
		count++;
		if (client->options.done)
			client->options.done(client, &done, client->options.context);
		/* The callback may have waited, and reaped past us. */
		if (is_ahead(client, at, client->reaped))
			at = client->reaped;
	}
	ring_reap(client);
	return count;
}

static int deliver_news(struct seal_client *client)
{
	int count = 0;

	while (has_news(client)) {
		const struct seal_ring_event event =
			client->events[ring_place(client->event_ring, client->event_tail)];
		const struct seal_news news = {
			.kind = event.kind,
			.number = event.slot,
			.file = event.file,
			.state = seal_word_state(event.word),
			.cookie = event.cookie,
			.offset = event.offset,
			.length = event.length,
			.deadline = event.deadline,
			.word = event.word,
		};

		client->event_tail = ring_forward(client->event_ring, client->event_tail, 1);
		__atomic_store_n(&client->mailbox->event_tail, client->event_tail,
				 __ATOMIC_RELEASE);
		count++;
		if (client->options.news)
			client->options.news(client, &news, client->options.context);
	}
	return count;
}

int seal_dispatch(struct seal_client *client)
{
	struct epoll_event event;
	eventfd_t self;
	int count, error = client_check(client);

	if (error)
		return error;
	/* A recall is told before anything else: what it takes is in memory already. */
	count = deliver_news(client);
	/* Take the signs away first, then look at what they are about. */
	while (epoll_wait(client->fds[BELL], &event, 1, 0) > 0)
		;
	eventfd_read(client->self, &self);
	control_drain(client);
	/* What comes before the last look is found by it; what comes later rings. */
	want_bell(client);
	count += deliver_completions(client) + deliver_news(client);
	return count || !is_over(client) ? count : -EPIPE;
}

/* The thread that serves all rings, and its side of the doorbells. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

#define BUDGET 64 /* commands of one ring before the others have their turn */
#define EVENTS 64
#define TICK_MS 100
#define LEAST_PATIENCE_NS 1000
#define CALM_TURNS 64
#define SPIN_LIMIT_NS 10000000 /* then whatever else there is has its turn */
#define LOOKS_BETWEEN_KICKS 16
#define PAUSES 16
#define LEAST_ENTRY offsetof(struct seal_command, length)

/* Copy the entry at our tail. Its size, or 0: the client broke the rules. */
static uint32_t take(struct ring *ring, uint32_t head, struct seal_command *out)
{
	uint32_t place = ring_place(ring->command_ring, ring->tail);
	const char *entry = (char *)ring->commands + place;
	uint32_t filled = ring_ahead(ring->command_ring, ring->tail, head);
	uint32_t room = ring->command_ring.size - place, size;

	if (filled > ring->command_ring.size)
		return 0;
	if (room > filled)
		room = filled;
	memset(out, 0, sizeof(*out));
	/* Once: it is the client's memory, and may change under our eyes. */
	memcpy(out, entry, room < sizeof(*out) ? room : sizeof(*out));
	__asm__ volatile("" ::: "memory");
	size = out->size;
	if (!ring_holds(ring->command_ring, ring->tail, head, size, SEAL_RING_ALIGN))
		return 0;
	if (out->op == SEAL_CMD_PAD)
		return size;
	if (size < LEAST_ENTRY || size > SEAL_RING_MAX_ENTRY)
		return 0;
	/* What lies behind a short entry belongs to the next. */
	if (size < sizeof(*out))
		memset((char *)out + size, 0, sizeof(*out) - size);
	return size;
}

unsigned ring_consume(struct seal_rings *rings, struct ring *ring, unsigned budget)
{
	unsigned count = 0;

	while (count < budget && !(ring->flags & SEAL_RING_BROKEN)) {
		uint32_t head = __atomic_load_n(&ring->mailbox->command_head, __ATOMIC_ACQUIRE);
		uint32_t size, place;
		struct seal_command command;

		if (head == ring->tail)
			break;
		size = ring_is_position(ring->command_ring, head, SEAL_RING_ALIGN)
			       ? take(ring, head, &command)
			       : 0;
		if (!size) {
			ring_flag(ring, SEAL_RING_BROKEN);
			rings->counters.broken++;
			count++;
			break;
		}
		place = ring_place(ring->command_ring, ring->tail);
		ring->tail = ring_forward(ring->command_ring, ring->tail, size);
		__atomic_store_n(&ring->mailbox->command_tail, ring->tail, __ATOMIC_RELEASE);
		count++;
		if (command.op == SEAL_CMD_PAD)
			continue;
		ring->commands_seen++;
		rings->counters.commands[command.op < SEAL_RING_OPCODES ? command.op
									: SEAL_RING_OPCODES - 1]++;
		ring_serve(rings, ring, place, &command);
	}
	if (count)
		ring_bell(ring);
	return count;
}

unsigned seal_ring_poll(struct seal_rings *rings, uint32_t number, unsigned budget)
{
	struct ring *ring;
	unsigned count = 0;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		count = ring_consume(rings, ring, budget);
	return count;
}

/* 1: it has nothing left, and kicks us when it has. */
static int falls_asleep(struct ring *ring)
{
	__atomic_store_n(&ring->mailbox->kick_wanted, 1, __ATOMIC_RELAXED);
	/* Before our last look at the head, as the client's is between its head and its look at this. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&ring->mailbox->command_head, __ATOMIC_RELAXED) == ring->tail ||
	       (ring->flags & SEAL_RING_BROKEN);
}

/* Looked at without being kicked: 1 when there was something. */
static int look(struct seal_rings *rings, unsigned place)
{
	struct ring *ring;
	unsigned count = 0;

	SCOPED_LOCK(rings->lock);
	ring = rings->ring[place];
	if (ring)
		count = ring_consume(rings, ring, BUDGET);
	return count != 0;
}

/* Looking that leads to nothing is given up: a client on our own processor has to wait for its end. Now
 * and then it is tried. */
static void adapt(struct seal_rings *rings, int found)
{
	uint64_t most = __atomic_load_n(&rings->spin_ns, __ATOMIC_RELAXED);

	if (found)
		rings->patience_ns *= 2;
	else
		rings->patience_ns /= 2;
	if (rings->patience_ns > most)
		rings->patience_ns = most;
	if (rings->patience_ns < LEAST_PATIENCE_NS)
		rings->patience_ns = rings->calm = 0;
}

/* Is it to be looked at, rather than to kick? Only where commands come in such intervals. */
static int stays_awake(struct seal_rings *rings, unsigned place, unsigned count)
{
	uint64_t most = __atomic_load_n(&rings->spin_ns, __ATOMIC_RELAXED), now, before;

	if (!most || !count)
		return 0;
	if (!rings->patience_ns && ++rings->calm >= CALM_TURNS)
		rings->patience_ns = most;
	now = ring_now_ns();
	before = rings->served_ns;
	rings->served_ns = now;
	if (!rings->patience_ns || now - before > most ||
	    rings->watched_count == SEAL_RINGS_WATCHED)
		return 0;
	for (unsigned i = 0; i < rings->watched_count; i++)
		if (rings->watched[i] == place)
			return 1;
	rings->watched[rings->watched_count++] = (uint16_t)place;
	return 1;
}

/* 1: there is more of it. */
static int serve(struct seal_rings *rings, unsigned place)
{
	struct ring *ring;
	int more = 0;

	SCOPED_LOCK(rings->lock);
	ring = rings->ring[place];
	if (ring) {
		unsigned count;

		__atomic_store_n(&ring->mailbox->kick_wanted, 0, __ATOMIC_RELAXED);
		count = ring_consume(rings, ring, BUDGET);
		more = count >= BUDGET ||
		       (!stays_awake(rings, place, count) && !falls_asleep(ring));
	}
	return more;
}

static void expire(struct ring *ring, uint64_t now_ns)
{
	uint64_t next = UINT64_MAX;

	for (uint32_t i = 0; i < ring->high; i++) {
		struct seal_slot *slot = table_live(ring, i);

		if (!slot || !slot->expires || slot->adopted || slot->file == SEAL_NO_FILE)
			continue;
		if (slot->expires > now_ns) {
			next = slot->expires < next ? slot->expires : next;
			continue;
		}
		/* Kept by courtesy: it ends when somebody conflicts. */
		slot->expires = 0;
		if (table_step(slot, SEAL_STEP_LAPSE) == 0)
			ring_tell_seal(ring, SEAL_EVENT_LAPSED, i);
	}
	ring->next_expiry = next;
}

void seal_rings_tick(struct seal_rings *rings, uint64_t now_ns)
{
	for (int i = 0; i < SEAL_RINGS_MAX; i++) {
		struct ring *ring;

		/* Ring by ring: the gate waits for this lock. */
		if (!__atomic_load_n(&rings->ring[i], __ATOMIC_RELAXED))
			continue;
		pthread_mutex_lock(rings->lock);
		ring = rings->ring[i];
		if (ring) {
			if (ring_abort_overdue(ring, now_ns))
				ring_bell(ring);
			if (ring->next_expiry <= now_ns)
				expire(ring, now_ns);
		}
		pthread_mutex_unlock(rings->lock);
	}
}

static void wakes(struct seal_rings *rings, uint64_t place)
{
	if (place >= SEAL_RINGS_MAX || rings->is_busy[place])
		return;
	rings->is_busy[place] = 1;
	rings->busy[rings->busy_count++] = (uint16_t)place;
}

/* Each that has something to do has a turn. */
static void serve_all(struct seal_rings *rings)
{
	unsigned count = rings->busy_count;

	rings->busy_count = 0;
	for (unsigned i = 0; i < count; i++) {
		unsigned place = rings->busy[i];

		if (serve(rings, place))
			rings->busy[rings->busy_count++] = (uint16_t)place;
		else
			rings->is_busy[place] = 0;
	}
}

static void heard(struct seal_rings *rings, uint64_t event)
{
	if (event & RING_LANE)
		ring_lane_heard(rings, event);
	else
		wakes(rings, event);
}

/* Until nothing has come for a while, or somebody else kicks. */
static void spin(struct seal_rings *rings)
{
	uint64_t begun = ring_now_ns(), now = begun;
	unsigned looks = 0, found = 0;

	while (now - rings->served_ns < rings->patience_ns && now - begun < SPIN_LIMIT_NS) {
		struct epoll_event event;

		for (unsigned i = 0; i < rings->watched_count; i++)
			if (look(rings, rings->watched[i])) {
				rings->served_ns = now;
				found++;
			}
		if (++looks % LOOKS_BETWEEN_KICKS == 0 && epoll_wait(rings->epoll, &event, 1, 0)) {
			heard(rings, event.data.u64);
			break;
		}
		for (int i = 0; i < PAUSES; i++)
#if defined(__x86_64__)
			__builtin_ia32_pause();
#else
			__asm__ volatile("" ::: "memory");
#endif
		now = ring_now_ns();
	}
	adapt(rings, found != 0);
	/* From now on they kick: what came before that is found by one more turn. */
	for (unsigned i = 0; i < rings->watched_count; i++)
		wakes(rings, rings->watched[i]);
	rings->watched_count = 0;
	rings->served_ns = 0;
}

static void *run(void *argument)
{
	struct seal_rings *rings = argument;
	struct epoll_event events[EVENTS];
	uint64_t ticked = 0;

	pthread_setname_np(pthread_self(), "seal-rings");
	while (!__atomic_load_n(&rings->stopping, __ATOMIC_ACQUIRE)) {
		int n = epoll_wait(rings->epoll, events, EVENTS, rings->busy_count ? 0 : TICK_MS);
		uint64_t now;

		for (int i = 0; i < n; i++)
			heard(rings, events[i].data.u64);
		serve_all(rings);
		if (rings->watched_count && !rings->busy_count) {
			spin(rings);
			serve_all(rings);
		}
		now = ring_now_ns();
		if (now - ticked >= TICK_MS * UINT64_C(1000000)) {
			seal_rings_tick(rings, now);
			ticked = now;
		}
	}
	return NULL;
}

int seal_rings_open(struct seal_rings **out, pthread_mutex_t *lock, seal_rings_deliver *deliver,
		    void *context)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT32_MAX};
	struct seal_rings *rings = calloc(1, sizeof(*rings));
	int error;

	if (!rings)
		return -ENOMEM;
	rings->lock = lock;
	rings->deliver = deliver;
	rings->context = context;
	/* Apart from the service's tokens, which count from a small number. */
	rings->next_id = UINT64_C(1) << 60;
	rings->epoll = epoll_create1(EPOLL_CLOEXEC);
	rings->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (rings->epoll < 0 || rings->wake < 0 ||
	    epoll_ctl(rings->epoll, EPOLL_CTL_ADD, rings->wake, &event) < 0) {
		error = -errno;
		seal_rings_close(rings);
		return error;
	}
	*out = rings;
	return 0;
}

void seal_rings_spin(struct seal_rings *rings, uint32_t us)
{
	cpu_set_t cpus;
	uint64_t ns = (uint64_t)us * 1000;

	/* Who would be waited for has to run somewhere. */
	if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0 || CPU_COUNT(&cpus) < 2)
		ns = 0;
	__atomic_store_n(&rings->spin_ns, ns, __ATOMIC_RELAXED);
}

int seal_rings_start(struct seal_rings *rings)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&rings->thread, NULL, run, rings);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	rings->started = !error;
	return -error;
}

void seal_rings_close(struct seal_rings *rings)
{
	__atomic_store_n(&rings->stopping, 1, __ATOMIC_RELEASE);
	if (rings->started) {
		eventfd_write(rings->wake, 1);
		pthread_join(rings->thread, NULL);
	}
	for (int i = 0; i < SEAL_RINGS_MAX; i++)
		if (rings->ring[i]) {
			ring_flag(rings->ring[i], SEAL_RING_GONE);
			ring_bell(rings->ring[i]);
			ring_free(rings->ring[i]);
		}
	if (rings->epoll >= 0)
		close(rings->epoll);
	if (rings->wake >= 0)
		close(rings->wake);
	free(rings);
}

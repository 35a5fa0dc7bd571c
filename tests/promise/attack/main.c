/* Supervisor and workers. Workers carry out operations as far as the runner lets them; one that is held
 * for too long, as by a seal that waits, is killed and followed by another that goes on behind it. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attack.h"

#define NOBODY 65534
#define LIMIT_US 120000 /* of one operation, then its worker is killed */
#define SLOW_LIMIT_US 600000
#define TURN_US 40000 /* a replay in order goes on behind what is held for so long */
#define NAP_NS 150000
#define IS_REFUSED(error) ((error) == -ETXTBSY || (error) == -EBUSY)

typedef long doing(struct attacker *a, const struct op *op);

static doing *const doings[KIND_COUNT] = {
#define KIND(name, weight, flags) do_##name,
	KINDS(KIND)
#undef KIND
};

static struct {
	struct op *ops; /* of a replay: each worker's own, and their places among all */
	uint64_t *places, count;
} replays[WORKERS];
static int is_replay, is_ordered, dumps_cores;

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void nap(void)
{
	const struct timespec time = {0, NAP_NS};

	nanosleep(&time, NULL);
}

/* The record that a worker carries out next; 0 when there is none for it. */
static int record(const struct control *control, unsigned worker, uint64_t number, struct op *op)
{
	if (!is_replay) {
		generate(control, worker, number, op);
		return 1;
	}
	number -= control->epoch_first;
	if (number >= replays[worker].count)
		return 0;
	*op = replays[worker].ops[number];
	return 1;
}

static void wait_for_turn(struct control *control, unsigned worker, uint64_t number)
{
	uint64_t place = replays[worker].places[number - control->epoch_first], began = now_us();

	while (__atomic_load_n(&control->turn, __ATOMIC_ACQUIRE) < place &&
	       now_us() - began < TURN_US)
		sched_yield();
}

static void count(struct slot *slot, const struct op *op, long done)
{
	int ending = done >= 0 ? ENDED_OK : IS_REFUSED(done) ? ENDED_REFUSED : ENDED_FAILED;

	__atomic_add_fetch(&slot->counts[op->kind][ending], 1, __ATOMIC_RELAXED);
}

static void carry_out(struct attacker *a, uint64_t number)
{
	struct slot *slot = a->slot;
	struct op op;

	if (record(a->control, a->worker, number, &op)) {
		if (is_ordered)
			wait_for_turn(a->control, a->worker, number);
		__atomic_store_n(&slot->started_us, now_us(), __ATOMIC_RELEASE);
		slot->began_us[(number - a->control->epoch_first) % EPOCH_OPS] = slot->started_us;
		if (!(kind_flags[op.kind] & CORE) || dumps_cores)
			count(slot, &op, doings[op.kind](a, &op));
		__atomic_store_n(&slot->started_us, 0, __ATOMIC_RELEASE);
		if (is_ordered)
			__atomic_store_n(
				&a->control->turn,
				replays[a->worker].places[number - a->control->epoch_first] + 1,
				__ATOMIC_RELEASE);
	}
	__atomic_store_n(&slot->next, number + 1, __ATOMIC_RELEASE);
}

static void become(const struct control *control, unsigned worker)
{
	const struct rlimit size = {8 * FILE_BYTES, 8 * FILE_BYTES}, none = {0, 1 << 20};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setrlimit(RLIMIT_FSIZE, &size);
	setrlimit(RLIMIT_CORE, &none);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (control->privileged >> worker & 1)
		return;
	if (setgroups(0, NULL) < 0 || setresgid(NOBODY, NOBODY, NOBODY) < 0 ||
	    setresuid(NOBODY, NOBODY, NOBODY) < 0)
		_exit(2);
	prctl(PR_SET_DUMPABLE, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void worker_main(struct control *control, unsigned worker)
{
	struct attacker a = {.control = control, .slot = &control->slots[worker], .worker = worker};
	uint32_t epoch = 0;

	become(control, worker);
	a.buffer = mmap(NULL, BUFFER + BLOCK, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	if (a.buffer == MAP_FAILED)
		_exit(2);
	memset(a.buffer, (int)('a' + worker), BUFFER);
	while (!__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE)) {
		uint32_t wanted = __atomic_load_n(&control->epoch, __ATOMIC_ACQUIRE);

		if (epoch != wanted) {
			if (epoch)
				attacker_close(&a);
			epoch = 0;
			if (wanted)
				attacker_open(&a);
			epoch = wanted;
			__atomic_store_n(&a.slot->opened, epoch, __ATOMIC_RELEASE);
		}
		if (epoch && a.slot->next < __atomic_load_n(&control->until, __ATOMIC_ACQUIRE))
			carry_out(&a, a.slot->next);
		else
			nap();
	}
	_exit(0);
}

static void start(struct control *control, unsigned worker)
{
	struct slot *slot = &control->slots[worker];
	pid_t pid;

	slot->started_us = 0;
	slot->opened = 0;
	pid = fork();
	if (pid == 0)
		worker_main(control, worker);
	slot->pid = (uint32_t)pid;
}

/* Kill whoever is held for too long. Its operation counts as done. */
static void look_after(struct control *control, unsigned worker)
{
	struct slot *slot = &control->slots[worker];
	uint64_t started = __atomic_load_n(&slot->started_us, __ATOMIC_ACQUIRE), limit = LIMIT_US;
	uint64_t number = slot->next;
	struct op op = {0};

	if (started && now_us() - started > LIMIT_US) {
		record(control, worker, number, &op);
		if (kind_flags[op.kind] & SLOW)
			limit = SLOW_LIMIT_US;
		if (now_us() - started > limit && started == slot->started_us)
			kill((pid_t)slot->pid, SIGKILL);
	}
	if (waitpid((pid_t)slot->pid, NULL, WNOHANG) <= 0)
		return;
	if (slot->started_us) {
		record(control, worker, slot->next, &op);
		slot->counts[op.kind][ENDED_KILLED]++;
		slot->next++;
	}
	start(control, worker);
}

static void read_replay(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[512];
	uint64_t place = 0;

	if (!file)
		exit(2);
	is_replay = 1;
	while (fgets(line, sizeof(line), file)) {
		typeof(&replays[0]) replay;
		unsigned worker;
		struct op op;

		if (op_parse(line, &worker, &op) < 0)
			continue;
		replay = &replays[worker];
		replay->ops = realloc(replay->ops, (replay->count + 1) * sizeof(op));
		replay->places = realloc(replay->places, (replay->count + 1) * sizeof(uint64_t));
		replay->ops[replay->count] = op;
		replay->places[replay->count++] = place++;
	}
	fclose(file);
}

static void look_at_core_pattern(void)
{
	char text[128] = "";
	int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && read(fd, text, sizeof(text) - 1) > 0)
		dumps_cores = strcmp(text, "core\n") == 0;
	close(fd);
}

/* attack CONTROL [--ordered] [LIST]: CONTROL is the shared memory. attack CONTROL --print WORKER FIRST
 * LAST writes records. attack --kinds writes the size of CONTROL, which the runner compares
 * with its own, and the names of the kinds. */
int main(int argc, char **argv)
{
	struct control *control;
	int fd;

	if (argc == 2 && strcmp(argv[1], "--kinds") == 0) {
		printf("%zu\n", sizeof(*control));
		for (unsigned kind = 0; kind < KIND_COUNT; kind++)
			printf("%s\n", kind_names[kind]);
		return 0;
	}
	fd = argc > 1 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
	control = fd < 0 ? MAP_FAILED
			 : mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (control == MAP_FAILED) {
		fprintf(stderr, "attack: no control memory\n");
		return 2;
	}
	close(fd);
	if (argc == 6 && strcmp(argv[2], "--print") == 0) {
		unsigned worker = (unsigned)atoi(argv[3]);
		struct op op;

		for (uint64_t n = strtoull(argv[4], NULL, 10); n < strtoull(argv[5], NULL, 10);
		     n++) {
			generate(control, worker, n, &op);
			op_print(&op, worker);
		}
		return 0;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	is_ordered = argc > 2 && strcmp(argv[2], "--ordered") == 0;
	if (argc > 2 + is_ordered)
		read_replay(argv[2 + is_ordered]);
	look_at_core_pattern();
	for (unsigned worker = 0; worker < control->workers; worker++)
		start(control, worker);
	while (!__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE)) {
		for (unsigned worker = 0; worker < control->workers; worker++)
			look_after(control, worker);
		usleep(3000);
	}
	for (unsigned worker = 0; worker < control->workers; worker++)
		kill((pid_t)control->slots[worker].pid, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	return 0;
}

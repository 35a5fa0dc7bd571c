/* The parts of the target core that need no service: the gate, and copies to mapped files. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "gate.h"
#include "memory.h"
#include "stats.h"

#define THREADS 4
#define PASSAGES 20000
#define CLOSINGS 300
#define PAGE 4096

static struct export_gate gate;
static uint32_t in_flight;
/* What the gate protects: plain memory, which the closer writes and those who passed read. */
static unsigned long map;

static void *pass(void *context)
{
	unsigned long last = 0;

	(void)context;
	for (int n = 0; n < PASSAGES; n++) {
		while (!gate_try(&gate)) {
			gate_leave(&gate);
			CHECK(gate_wait(&gate, 0) == 0);
		}
		CHECK(map >= last && !(map & 1));
		last = map;
		gate_leave(&gate);
	}
	return NULL;
}

static void nobody_is_inside_while_it_is_closed(void)
{
	pthread_t threads[THREADS];

	CHECK(gate_init(&gate, &in_flight) == 0);
	for (int n = 0; n < THREADS; n++)
		CHECK(pthread_create(&threads[n], NULL, pass, NULL) == 0);
	for (int n = 0; n < CLOSINGS; n++) {
		gate_close(&gate);
		map++; /* odd: in between */
		map++;
		CHECK(gate_open(&gate) == 0);
	}
	for (int n = 0; n < THREADS; n++)
		CHECK(pthread_join(threads[n], NULL) == 0);
	CHECK(!__atomic_load_n(&in_flight, __ATOMIC_SEQ_CST));
	gate_destroy(&gate);
}

static void waits_end(void)
{
	uint64_t before = export_now(CLOCK_MONOTONIC);

	CHECK(gate_init(&gate, &in_flight) == 0);
	gate_close(&gate);
	gate_close(&gate);
	CHECK(!gate_try(&gate));
	gate_leave(&gate);
	CHECK(gate_wait(&gate, before + 20000000) == -ETIMEDOUT);
	CHECK(export_now(CLOCK_MONOTONIC) >= before + 20000000);
	CHECK(gate_open(&gate) == 1);
	CHECK(!gate_try(&gate));
	gate_leave(&gate);
	gate_end(&gate);
	CHECK(gate_wait(&gate, 0) == -ESHUTDOWN);
	gate_destroy(&gate);
}

static unsigned char *file_of(int pages, int *fd)
{
	char name[] = "/tmp/test-exports-XXXXXX";
	void *mapping;

	*fd = mkstemp(name);
	CHECK(*fd >= 0 && !unlink(name) && !ftruncate(*fd, (off_t)pages * PAGE));
	mapping = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	CHECK(mapping != MAP_FAILED);
	return mapping;
}

/* Every start and length around cache lines: not a byte more, not a byte less. */
static void persistent_stores_are_exact(void)
{
	unsigned char from[512], wanted[1024], *mapping;
	int fd;

	mapping = file_of(1, &fd);
	for (size_t n = 0; n < sizeof(from); n++)
		from[n] = (unsigned char)(n * 7 + 1);
	for (size_t start = 0; start < 130; start++) {
		for (size_t length = 0; length < 300; length += length < 70 ? 1 : 23) {
			memset(mapping, 0xee, sizeof(wanted));
			memset(wanted, 0xee, sizeof(wanted));
			memcpy(wanted + start, from, length);
			CHECK(memory_store_persistent(mapping + start, from, length) == 0);
			CHECK(!memcmp(mapping, wanted, sizeof(wanted)));
			memset(wanted + start, 0, length);
			CHECK(memory_clear_persistent(mapping + start, length) == 0);
			CHECK(!memcmp(mapping, wanted, sizeof(wanted)));
		}
	}
	munmap(mapping, PAGE);
	close(fd);
}

static void what_is_not_there_is_an_error(void)
{
	unsigned char buffer[2 * PAGE] = {1}, *mapping;
	size_t at = 0;
	int fd;

	mapping = file_of(2, &fd);
	CHECK(memory_store(mapping, buffer, sizeof(buffer)) == 0);
	CHECK(memory_compare(mapping, buffer, sizeof(buffer), &at) == 0 && at == sizeof(buffer));
	buffer[PAGE + 3] ^= 1;
	CHECK(memory_compare(mapping, buffer, sizeof(buffer), &at) == 0 && at == PAGE + 3);
	CHECK(ftruncate(fd, PAGE) == 0);
	CHECK(memory_load(buffer, mapping, sizeof(buffer)) == -EIO);
	CHECK(memory_store(mapping, buffer, sizeof(buffer)) == -EIO);
	CHECK(memory_clear(mapping + PAGE, 1) == -EIO);
	CHECK(memory_store_persistent(mapping + PAGE, buffer, PAGE) == -EIO);
	CHECK(memory_load(buffer, mapping, PAGE) == 0);
	munmap(mapping, 2 * PAGE);
	close(fd);
}

/* A SIGBUS that is not of a copy of ours ends the process as ever. */
static void other_bus_errors_are_not_swallowed(void)
{
	volatile unsigned char *mapping;
	int fd, status;
	pid_t child;

	mapping = file_of(1, &fd);
	CHECK(ftruncate(fd, 0) == 0);
	child = fork();
	CHECK(child >= 0);
	if (!child)
		_exit(mapping[0]);
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	munmap((void *)mapping, PAGE);
	close(fd);
}

static void histograms_count(void)
{
	struct export_histogram histogram = {0};

	export_record(&histogram, 0);
	export_record(&histogram, 1);
	export_record(&histogram, 1023);
	export_record(&histogram, 1024);
	export_record(&histogram, UINT64_MAX);
	CHECK(histogram.count == 5 && histogram.longest_ns == UINT64_MAX);
	CHECK(histogram.buckets[0] == 1 && histogram.buckets[1] == 1);
	CHECK(histogram.buckets[10] == 1 && histogram.buckets[11] == 1);
	CHECK(histogram.buckets[EXPORT_STATS_BUCKETS - 1] == 1);
}

int main(int argc, char **argv)
{
	nobody_is_inside_while_it_is_closed();
	waits_end();
	histograms_count();
	/* ThreadSanitizer has no landing by siglongjmp() out of a SIGBUS. */
	if (argc > 1 && !strcmp(argv[1], "thread"))
		return 0;
	CHECK(memory_init() == 0);
	persistent_stores_are_exact();
	what_is_not_there_is_an_error();
	/* AddressSanitizer has a handler of its own, which reports. */
	if (argc < 2)
		other_bus_errors_are_not_swallowed();
	return 0;
}

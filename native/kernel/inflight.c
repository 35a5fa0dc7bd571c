#include "sealsvc/inflight.h"

#include <string.h>
#include <time.h>

#include "sealsvc/operation.h"
#include "sealsvc/procfs.h"

#define MAX_THREADS 4096

static char task_letter(int32_t tid)
{
	struct seal_task task;

	return seal_task_read(tid, &task) == 0 ? task.state : '\0';
}

int seal_call_ended(int32_t tid, const struct seal_syscall *then, const struct seal_syscall *now)
{
	char letter;

	if (now->state == SEAL_TASK_GONE)
		return 1;
	if (now->state == SEAL_TASK_RUNNING)
		return 0;
	if (then->state == SEAL_TASK_BLOCKED &&
	    (now->nr != then->nr || now->sp != then->sp || now->pc != then->pc ||
	     memcmp(now->args, then->args, sizeof(now->args)) != 0))
		return 1;
	letter = task_letter(tid);
	return letter == 'S' || letter == 'Z' || letter == '\0';
}

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Nothing is known of what the thread was doing when this began. */
static int thread_is_clear(struct seal_task_looker *looker, int32_t tid)
{
	struct seal_syscall unknown = {.state = SEAL_TASK_RUNNING}, now;
	struct seal_stack stack;

	seal_syscall_read(looker, tid, &now);
	if (seal_call_ended(tid, &unknown, &now))
		return 1;
	if (now.state != SEAL_TASK_BLOCKED)
		return 0;
	seal_stack_read(looker, tid, &stack);
	return seal_task_changes_no_map(&stack, &now);
}

int seal_drain_process(int pid, uint32_t timeout_us)
{
	uint64_t deadline = now_us() + timeout_us;
	struct timespec nap = {0, 100000};
	struct seal_task_looker looker;
	int32_t tids[MAX_THREADS];
	int count = seal_task_threads(pid, tids, MAX_THREADS);

	if (count > MAX_THREADS)
		return 0;
	seal_task_looker_init(&looker, 64);
	/* A process that is gone took its calls with it. */
	while (count > 0) {
		if (thread_is_clear(&looker, tids[count - 1]))
			count--;
		else if (now_us() >= deadline)
			break;
		else
			nanosleep(&nap, NULL);
	}
	seal_task_looker_close(&looker);
	return count <= 0;
}

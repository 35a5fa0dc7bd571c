/* What the kernel says of a task by its number, and the time. Without the lock, or with it: none of these waits. */
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "sealsvc/procfs.h"

uint64_t gate_now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int gate_in_process(int32_t tgid, int32_t tid)
{
	return tgid > 0 && syscall(SYS_tgkill, tgid, tid, 0) == 0;
}

/* Takes no lock that a task could hold for long (fs/proc/array.c). */
void gate_identify(struct seal_report *what)
{
	struct seal_task task;

	if (seal_task_read(what->operation.tid, &task) == 0) {
		what->tgid = task.tgid;
		what->uid = task.uid;
		memcpy(what->comm, task.comm, sizeof(what->comm));
	}
}

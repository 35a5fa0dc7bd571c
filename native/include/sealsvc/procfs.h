/* What /proc tells of a task. */
#ifndef SEALSVC_PROCFS_H
#define SEALSVC_PROCFS_H

#include <stddef.h>
#include <stdint.h>

struct seal_task {
	int32_t tgid;
	uint32_t uid;
	char state; /* R, S, D, T, Z, ... */
	char comm[16];
	uint64_t start_time; /* field 22 of stat: clock ticks since boot */
};

/* 0 or -errno (-ENOENT, -ESRCH: no such task). `tid` may be any thread. */
int seal_task_read(int32_t tid, struct seal_task *out);

/* Thread ids of process pid, at most max of them; returns how many there are, or -errno. */
int seal_task_threads(int32_t pid, int32_t *out, size_t max);

#endif

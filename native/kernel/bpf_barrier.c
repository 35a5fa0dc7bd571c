/* A seal that is being made waits for the operations that passed before its entry was there. */
#include "bpf_internal.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "sealsvc/task_look.h"

/* Calls in which a task only waits. */
static int is_waiting(int64_t call)
{
	switch (call) {
	case SYS_poll:
	case SYS_ppoll:
	case SYS_select:
	case SYS_pselect6:
	case SYS_epoll_wait:
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
	case SYS_futex:
	case SYS_nanosleep:
	case SYS_clock_nanosleep:
	case SYS_pause:
	case SYS_rt_sigsuspend:
	case SYS_rt_sigtimedwait:
	case SYS_wait4:
	case SYS_waitid:
	case SYS_accept:
	case SYS_accept4:
	case SYS_recvfrom:
	case SYS_recvmsg:
		return 1;
	}
	return 0;
}

/* The kernel may skip the program that ends an operation. Then the task is gone by now, or seen in
 * another call sooner or later: a kernel thread, which has no stack in user space, never. */
static int is_over(struct seal_task_looker *looker, uint64_t task)
{
	struct seal_syscall now;
	char path[40];

	snprintf(path, sizeof(path), "/proc/%u", (uint32_t)task);
	if (access(path, F_OK))
		return errno == ENOENT;
	seal_syscall_read(looker, (int32_t)task, &now);
	return now.state == SEAL_TASK_BLOCKED && now.sp && is_waiting(now.nr);
}

/* 1 when an operation on the file, or one that may be on it, is older than `since`. */
static int is_under_way(struct seal_bpf *bpf, struct seal_task_looker *looker,
			const struct seal_bpf_file *file, uint64_t since)
{
	struct seal_bpf_underway key, *last = NULL;

	while (!bpf_map_get_next_key(bpf->underway, last, &key)) {
		struct seal_bpf_since value;

		last = &key;
		if (bpf_map_lookup_elem(bpf->underway, &key, &value) || value.time > since)
			continue;
		if (key.file.device
			    ? key.file.device != file->device || key.file.inode != file->inode
			    : value.device != file->device)
			continue;
		if (!is_over(looker, key.task))
			return 1;
		if (!bpf_map_delete_elem(bpf->underway, &key) && !key.file.device)
			__atomic_fetch_sub(&bpf->control->loose, 1, __ATOMIC_SEQ_CST);
	}
	return 0;
}

int seal_bpf_barrier(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint32_t timeout_us)
{
	uint64_t start = bpf_now(), end = start + (uint64_t)timeout_us * 1000;
	uint64_t untracked = __atomic_load_n(&bpf->control->untracked, __ATOMIC_SEQ_CST);
	struct seal_task_looker looker;
	struct timespec pause = {0, 50000};
	int passed;

	/* The entry is there before we look for operations: notes.h has it the other way round. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (untracked != __atomic_exchange_n(&bpf->untracked, untracked, __ATOMIC_SEQ_CST))
		return 0;
	seal_task_looker_init(&looker, 64);
	while (!(passed = !is_under_way(bpf, &looker, file, start)) && bpf_now() < end) {
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 5000000)
			pause.tv_nsec *= 2;
	}
	seal_task_looker_close(&looker);
	return passed;
}

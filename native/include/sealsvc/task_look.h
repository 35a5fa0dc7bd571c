/* What /proc tells of a task that has stopped inside the kernel: its kernel stack, and the registers
 * it entered the kernel with.
 *
 * Only the kernel writes /proc/TID/stack: it is evidence. /proc/TID/syscall is a copy of user-mode
 * registers, which are those of the present system call only where the stack proves that the task is
 * in one: an io_uring worker has its creator's, a kernel thread has none, and task work or a core dump
 * at the exit of a call has those of that call.
 *
 * Both files take the target's exec_update_lock (fs/proc/base.c, lock_trace), so that a look may block
 * for as long as the target's execve(2) does: never look with a lock held, nor on a thread that must
 * answer others. */
#ifndef SEALSVC_TASK_LOOK_H
#define SEALSVC_TASK_LOOK_H

#include <stdint.h>

enum seal_task_state { SEAL_TASK_BLOCKED, SEAL_TASK_RUNNING, SEAL_TASK_GONE };

/* One line of /proc/TID/syscall. The kernel reads the number as an int (syscall_get_nr). */
struct seal_syscall {
	int state; /* enum seal_task_state */
	int64_t nr;
	uint64_t args[6], sp, pc;
};

#define SEAL_STACK_FRAMES 64 /* MAX_STACK_TRACE_DEPTH of fs/proc/base.c */

/* The names of the functions that a task is in, the innermost first, without offsets and suffixes that
 * compilers add (".isra.0"), and without BPF trampolines. SEAL_TASK_RUNNING: it has not gone to sleep
 * yet. SEAL_TASK_GONE: it cannot be known, now or later. */
struct seal_stack {
	int state; /* enum seal_task_state */
	unsigned count;
	const char *frame[SEAL_STACK_FRAMES];
	char text[4096];
};

/* Keeps the files it reads open, a few at a time: opening one costs four times a read. */
struct seal_task_looker {
	unsigned count; /* of the slots that are used */
	struct seal_task_slot {
		int32_t tid;
		int syscall, stack;
	} slots[64];
};

/* Two descriptors are kept for each of at most `tasks` (64) tasks. */
void seal_task_looker_init(struct seal_task_looker *looker, unsigned tasks);
void seal_task_looker_close(struct seal_task_looker *looker);
void seal_syscall_read(struct seal_task_looker *looker, int32_t tid, struct seal_syscall *out);
void seal_stack_read(struct seal_task_looker *looker, int32_t tid, struct seal_stack *out);

/* 1 when the frames from `from` on are the entry of a native system call and nothing else: what runs
 * at its exit (task work, signals, core dumps), compat calls, workers and kernel threads are not. Only
 * then /proc/TID/syscall has the arguments of what the frames before `from` do. x86-64 only: elsewhere
 * it is 0. */
int seal_stack_is_plain_call(const struct seal_stack *stack, unsigned from);

#endif

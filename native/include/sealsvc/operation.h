/* What a task that the kernel has stopped for us is about to do, as far as it can be proven. */
#ifndef SEALSVC_OPERATION_H
#define SEALSVC_OPERATION_H

#include <stdint.h>

#include "sealsvc/task_look.h"
#include "sealsvc/verdict.h"

/* What fanotify says of the event; offset and length are rounded out to pages by the kernel. */
struct seal_event {
	int32_t tid;
	int is_open;
	int has_range;
	uint64_t offset, length;
};

/* Judge the event by the stack of its task. What the stack does not prove is SEAL_OP_HIDDEN,
 * SEAL_OP_OPEN_HIDDEN or SEAL_OP_WRITE_UNKNOWN: the failure direction is to hold too much. Returns the
 * set (1 << SEAL_OP_*) of what the operation can be as told by the registers of its system call, where
 * these are evidence and would tell more: call seal_operation_narrow then. 0: nothing is to be added. */
uint64_t seal_operation_judge(const struct seal_event *event, const struct seal_stack *stack,
			      struct seal_operation *out);
/* 1: the stack proved what it is, or the registers may. 0: it may be anything of its kind. */
int seal_operation_is_proven(const struct seal_operation *operation, uint64_t among);
/* 1: two looks at a task showed the same. A task that ran while its stack was walked shows only a part of it:
 * the kernel's check against that is racy (__unwind_start, arch/x86/kernel/unwind_orc.c), and each answer to one
 * task wakes every other that waits for the same fanotify group. */
int seal_stack_is_same(const struct seal_stack *one, const struct seal_stack *other);
/* `call` is of the same task, which is still stopped; `among` what seal_operation_judge returned. */
void seal_operation_narrow(const struct seal_syscall *call, uint64_t among,
			   struct seal_operation *out);

/* 1 when the functions that the task is in, wherever it sleeps, are proven to change no map. */
int seal_task_changes_no_map(const struct seal_stack *stack, const struct seal_syscall *call);

/* What a native system call with these arguments does: a name for a report, and evidence only where
 * seal_stack_is_plain_call() says so. */
int seal_operation_of_call(const struct seal_syscall *call, struct seal_operation *out);

#endif

/* Looking at a task that waits for our answer. Never with the lock held: a look may block. */
#include <string.h>

#include "internal.h"

#define CONFIRMATIONS 3

/* It waits for fanotify, or nothing can be known of it: a kernel that shows no names, for example. */
static int is_asleep(const struct seal_stack *stack)
{
	if (stack->state == SEAL_TASK_RUNNING)
		return 0;
	for (unsigned i = 0; i < stack->count; i++)
		if (strncmp(stack->frame[i], "fanotify_", 9) == 0)
			return i == 0; /* else it was preempted on its way to sleep */
	return 1;
}

/* What proves nothing has to be what there is, and not what was left of it while the task ran. */
static int stays(struct seal_task_looker *looker, int32_t tid, const struct seal_stack *seen)
{
	struct seal_stack again;

	for (int i = 0; i < CONFIRMATIONS; i++) {
		seal_stack_read(looker, tid, &again);
		if (!seal_stack_is_same(seen, &again))
			return 0;
	}
	return 1;
}

int gate_look(struct seal_task_looker *looker, const struct seal_event *event, struct look *out)
{
	uint64_t among;

	out->call.state = SEAL_TASK_GONE;
	seal_stack_read(looker, event->tid, &out->stack);
	if (!is_asleep(&out->stack))
		return 0;
	among = seal_operation_judge(event, &out->stack, &out->operation);
	if (!seal_operation_is_proven(&out->operation, among) &&
	    !stays(looker, event->tid, &out->stack))
		return 0;
	/* Those that may change a map are compared with a later look (passages.c). */
	if (!among &&
	    !seal_changes((uint32_t)out->operation.op, SEAL_TRAIT_REFLINK | SEAL_TRAIT_ATOMIC))
		return 1;
	seal_syscall_read(looker, event->tid, &out->call);
	if (out->call.state == SEAL_TASK_RUNNING)
		return 0; /* woken for nothing: it goes to sleep again */
	if (among)
		seal_operation_narrow(&out->call, among, &out->operation);
	return 1;
}

void gate_unseen(const struct seal_event *event, struct look *out)
{
	out->stack.state = out->call.state = SEAL_TASK_GONE;
	seal_operation_judge(event, &out->stack, &out->operation);
}

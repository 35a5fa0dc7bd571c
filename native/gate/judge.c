/* What an operation meets among the guards of its file. */
#include "internal.h"
#include "sealsvc/proof.h"

static void meet(struct verdict *verdict, int policy, int error)
{
	verdict->error = seal_prevailing_errno(verdict->error, error);
	if (policy > verdict->policy)
		verdict->policy = policy;
}

static int is_absolved(const struct waiter *waiter, uint64_t id)
{
	for (unsigned i = 0; waiter && i < waiter->absolved_count; i++)
		if (waiter->absolved[i] == id)
			return 1;
	return 0;
}

/* A registration: its seals are not ours to know. */
static void ask_watch(const struct seal_gate *gate, const struct file *file,
		      const struct seal_guard *guard, const struct seal_operation *operation,
		      int own, const struct waiter *waiter, struct verdict *verdict)
{
	uint64_t unproven = 0;
	int error = 0, policy = SEAL_POLICY_WAIT;

	if (gate->judge)
		policy = gate->judge(gate->judge_context, guard->watch, operation, &file->traits,
				     own, is_absolved(waiter, guard->id), &error, &unproven);
	if (unproven && gate->prover >= 0 && !seal_is_mapped(gate->prover, file->path_fd)) {
		unproven = 0;
		policy = gate->judge(gate->judge_context, guard->watch, operation, &file->traits,
				     own, 1, &error, &unproven);
	}
	/* The proof is asked for last: what waits for a seal can change until then. */
	if (unproven && verdict->policy < 0)
		verdict->unproven = unproven;
	else if (policy >= 0 && !unproven)
		verdict->unproven = 0;
	if (unproven)
		verdict->is_told = 0;
	meet(verdict, policy, error);
}

/* A holder's own conflict is answered at once: it cannot be recalled while it is stopped here (EDEADLK
 * is what one would want; fanotify cannot send it). */
struct verdict gate_judge(const struct seal_gate *gate, const struct file *file,
			  const struct seal_operation *operation, const struct waiter *waiter)
{
	int32_t tgid = waiter ? waiter->report.tgid : 0;
	struct verdict verdict = {.policy = -1, .is_told = 1};

	for (const struct guard *at = guards_first(&file->guards, operation, &file->traits); at;
	     at = guards_next(&file->guards, at, operation, &file->traits)) {
		const struct seal_guard *guard = &at->is;
		int own, error = 0;

		if (!seal_conflicts(operation, guard, &file->traits, 1) &&
		    !seal_conflicts(operation, guard, &file->traits, 0))
			continue;
		own = tgid ? tgid == guard->holder : gate_in_process(guard->holder, operation->tid);
		if (!seal_conflicts(operation, guard, &file->traits, own))
			continue;
		if (guard->policy == SEAL_POLICY_WATCH) {
			ask_watch(gate, file, guard, operation, own, waiter, &verdict);
			continue;
		}
		error = seal_policy_errno(guard->policy, own);
		verdict.unproven = verdict.is_told = 0;
		meet(&verdict, (int)guard->policy, error);
	}
	return verdict;
}

struct verdict gate_judge_first(struct seal_gate *gate, const struct file *file,
				const struct seal_operation *operation)
{
	struct verdict verdict;

	gate->outlet.postpone(gate->outlet.context, 1);
	verdict = gate_judge(gate, file, operation, NULL);
	gate->outlet.postpone(gate->outlet.context, 0);
	return verdict;
}

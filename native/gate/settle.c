/* Judging held operations anew, when the guards of their file have changed. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#include "internal.h"

/* A grant of another service (a container's, say), whose threads have this name. It may hold us at its
 * own arming guard, as we would hold it at ours: two that wait for each other wait for ever. So it is
 * refused, and its client tries again. Whoever else calls itself so gets no more than EBUSY. */
static int is_kin(const struct seal_report *who)
{
	return who->uid == 0 && strcmp(who->comm, SEAL_SERVICE_COMM) == 0;
}

int gate_settle(struct seal_gate *gate, struct file *file, struct waiter *waiter)
{
	struct verdict verdict = gate_judge(gate, file, &waiter->report.operation, waiter);

	waiter->judged = file->changes;
	if (verdict.policy < 0 && seal_changes_maps(waiter->report.operation.op, &file->traits))
		verdict.error = -gate_passage_begins(gate, file, waiter->event.tid, &waiter->call);
	if (verdict.policy < 0 && !verdict.error)
		gate_touch(gate, file, &waiter->report.operation);
	if (verdict.policy < 0 || verdict.error) {
		gate_finish(gate, waiter, verdict.error);
		return 1;
	}
	if (waiter->fresh) {
		if (!verdict.is_told)
			eventfd_write(gate->wake, 1); /* the minder is to come to it now */
		return 0;
	}
	if (verdict.unproven) {
		gate_ask_for_proof(gate, waiter, verdict.unproven);
		return 0;
	}
	if (verdict.policy != SEAL_POLICY_ARMING)
		gate_announce(gate, waiter);
	if (gate_is_server(&waiter->report)) {
		/* NFS4ERR_DELAY: its client asks again until the recall is over. */
		gate_finish(gate, waiter, EAGAIN);
		return 1;
	}
	if (verdict.policy == SEAL_POLICY_ARMING && is_kin(&waiter->report)) {
		gate_finish(gate, waiter, EBUSY);
		return 1;
	}
	return 0;
}

/* A batch of the file's waiters. Who is judged goes behind the others: 0: all have been. */
static int settle_batch(struct seal_gate *gate, struct file *file)
{
	for (unsigned count = 0; count < BATCH; count++) {
		struct waiter *waiter = LIST_FIRST(&file->waiters, struct waiter, place);

		if (!waiter || waiter->judged == file->changes)
			return 0;
		if (!gate_settle(gate, file, waiter)) {
			list_remove(&waiter->place);
			list_append(&file->waiters, &waiter->place);
		}
	}
	return 1;
}

void gate_settle_all(struct seal_gate *gate, struct file *file)
{
	file->changes++;
	if (!settle_batch(gate, file) || file->unsettled)
		return;
	file->unsettled = 1;
	file->next_unsettled = gate->unsettled;
	gate->unsettled = file;
	eventfd_write(gate->wake, 1);
}

int gate_settle_some(struct seal_gate *gate)
{
	struct file *file = gate->unsettled;

	for (unsigned i = 0; i < BATCH && !list_is_empty(&gate->released); i++)
		gate_finish(gate, LIST_FIRST(&gate->released, struct waiter, place), 0);
	if (file && !settle_batch(gate, file)) {
		gate->unsettled = file->next_unsettled;
		file->unsettled = 0;
	}
	return !list_is_empty(&gate->released) || gate->unsettled;
}

/* What the minder has not come to yet goes on. */
void gate_release_waiters(struct seal_gate *gate, struct file *file)
{
	struct file **at = &gate->unsettled;
	struct waiter *waiter;

	while ((waiter = LIST_FIRST(&file->waiters, struct waiter, place)))
		gate_list_waiter(waiter, WAITER_RELEASED, &gate->released);
	while (*at && *at != file)
		at = &(*at)->next_unsettled;
	if (*at)
		*at = file->next_unsettled;
	if (!list_is_empty(&gate->released))
		eventfd_write(gate->wake, 1);
}

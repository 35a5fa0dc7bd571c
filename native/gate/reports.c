/* What the service hears of held operations, and how one of them ends. */
#include <errno.h>
#include <string.h>

#include "internal.h"

static void deliver(struct seal_gate *gate, const struct waiter *waiter)
{
	gate->outlet.deliver(gate->outlet.context, &waiter->report);
}

void gate_announce(struct seal_gate *gate, struct waiter *waiter)
{
	if (waiter->reported)
		return;
	waiter->reported = 1;
	waiter->report.kind = SEAL_REPORT_HELD;
	deliver(gate, waiter);
	gate->counters.held++;
}

/* A thread of the kernel's NFS server. It serves other clients, of other files, as soon as it has an answer,
 * and there are few of it: it must not be kept. Who is no kernel thread and calls itself so gets EAGAIN
 * where it would have waited. */
int gate_is_server(const struct seal_report *who)
{
	return who->uid == 0 && strcmp(who->comm, "nfsd") == 0;
}

/* What the caller is told. EBUSY is no error that the NFS server knows: it warns of it in the kernel's log
 * (nfserrno() in fs/nfsd/vfs.c), and its client gets EIO for it as for ETXTBSY. */
static int told(const struct waiter *waiter, int error)
{
	if (error == EINTR)
		return EPERM;
	return error == EBUSY && gate_is_server(&waiter->report) ? ETXTBSY : error;
}

/* A server is told to try again as soon as the recall has begun: nobody is refused, and nothing crowded. */
static int tries_again(const struct waiter *waiter, int error)
{
	return error == EAGAIN && gate_is_server(&waiter->report);
}

void gate_finish(struct seal_gate *gate, struct waiter *waiter, int error)
{
	if (waiter->fresh) {
		/* It did wait, and somebody was recalled for it. */
		gate_identify(&waiter->report);
		gate_announce(gate, waiter);
	}
	waiter->report.waited_us = gate_now_us() - waiter->since_us;
	waiter->report.result = error;
	if (waiter->reported) {
		waiter->report.kind = SEAL_REPORT_ENDED;
		deliver(gate, waiter);
	} else if (error && error != EINTR && !tries_again(waiter, error)) {
		waiter->report.kind = SEAL_REPORT_REFUSED;
		waiter->report.waiter = 0;
		deliver(gate, waiter);
		gate->counters.refused++;
	}
	if (error == EAGAIN && !tries_again(waiter, error))
		gate->counters.crowded++;
	gate_forget_waiter(gate, waiter);
	waiter->answer = told(waiter, error);
	gate_list_waiter(waiter, WAITER_ANSWERED, &gate->answers);
}

/* It conflicts with no seal; whether a registration's client still maps what it would change is for
 * the service to find out. */
void gate_ask_for_proof(struct seal_gate *gate, struct waiter *waiter, uint64_t unproven)
{
	if (waiter->asked == unproven)
		return;
	waiter->asked = waiter->report.unproven = unproven;
	waiter->report.kind = SEAL_REPORT_UNPROVEN;
	deliver(gate, waiter);
}

void gate_tell_again(struct seal_gate *gate, struct waiter *waiter, int kind)
{
	waiter->report.kind = kind;
	waiter->report.waited_us = gate_now_us() - waiter->since_us;
	deliver(gate, waiter);
}

void gate_announce_again(struct seal_gate *gate, struct file *file, const struct seal_guard *guard)
{
	LIST_EACH(waiter, &file->waiters, struct waiter, place)
	{
		const struct seal_operation *operation = &waiter->report.operation;
		int own = gate_in_process(guard->holder, operation->tid);

		if (!waiter->reported || !seal_conflicts(operation, guard, &file->traits, own))
			continue;
		gate_tell_again(gate, waiter, SEAL_REPORT_HELD);
	}
}

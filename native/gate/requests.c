/* What the service says of single operations that are held. */
#include <errno.h>

#include "internal.h"

static int is_deniable(int error)
{
	switch (error) {
	case 0:
	case EPERM:
	case EIO:
	case EAGAIN:
	case EBUSY:
	case ETXTBSY:
	case ENOSPC:
	case EDQUOT:
		return 1;
	}
	return 0;
}

int seal_gate_answer(struct seal_gate *gate, uint64_t id, int error)
{
	struct waiter *waiter;

	if (!is_deniable(error))
		return -EINVAL;
	pthread_mutex_lock(&gate->lock);
	waiter = gate_find_waiter(gate, id, WAITER_HELD);
	if (waiter)
		gate_finish(gate, waiter, error);
	gate_unlock(gate);
	return waiter ? 0 : -ENOENT;
}

int seal_gate_absolve(struct seal_gate *gate, uint64_t id, uint64_t guard)
{
	struct waiter *waiter;
	int error = -ENOENT;

	pthread_mutex_lock(&gate->lock);
	waiter = gate_find_waiter(gate, id, WAITER_HELD);
	if (waiter && waiter->absolved_count == ABSOLVED_MAX) {
		gate_finish(gate, waiter, EBUSY);
		error = -ENOSPC;
	} else if (waiter) {
		waiter->absolved[waiter->absolved_count++] = guard;
		waiter->asked = 0;
		gate_settle_all(gate, waiter->file);
		error = 0;
	}
	gate_unlock(gate);
	return error;
}

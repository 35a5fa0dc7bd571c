/* Answering the kernel. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

#define FAN_DENY_WITH(error) (FAN_DENY | ((uint32_t)(error) << 24))

static void answer(struct seal_gate *gate, int shard, int event_fd, int error)
{
	struct fanotify_response response = {
		.fd = event_fd,
		.response = error ? FAN_DENY_WITH(error) : FAN_ALLOW,
	};

	/* ENOENT: the caller was killed meanwhile. Nothing is left to answer then. */
	if (write(gate->groups[shard], &response, sizeof(response)) < 0 && errno != ENOENT)
		__atomic_fetch_add(&gate->counters.failed_answers, 1, __ATOMIC_RELAXED);
}

/* Answer one that was held. The number stays taken until the answer is in: a reader could otherwise be
 * given it for another event, and the kernel knows an event by its number alone. */
void gate_respond(struct seal_gate *gate, int shard, int event_fd, int error)
{
	answer(gate, shard, event_fd, error);
	close(event_fd);
}

/* Let one go on from its reader, which takes no other event meanwhile. Closing first has our description
 * of the file gone before its caller can look who else has it open. Another reader may be given the
 * number, but of another group: the kernel looks among the events of the group it is written to. */
void gate_pass(struct seal_gate *gate, int shard, int event_fd)
{
	close(event_fd);
	answer(gate, shard, event_fd, 0);
}

/* Moves as many to `some`. */
static void take_some(struct seal_gate *gate, unsigned most, struct list *some)
{
	list_init(some);
	while (most-- && !list_is_empty(&gate->answers)) {
		struct list *first = gate->answers.next;

		list_remove(first);
		list_append(some, first);
	}
}

static void tell(struct seal_gate *gate, struct list *some)
{
	struct waiter *waiter;

	while ((waiter = LIST_FIRST(some, struct waiter, place))) {
		list_remove(&waiter->place);
		gate_respond(gate, waiter->shard, waiter->event_fd, waiter->answer);
		free(waiter);
	}
}

void gate_unlock(struct seal_gate *gate)
{
	struct list some;

	take_some(gate, ANSWERS_AT_ONCE, &some);
	if (!list_is_empty(&gate->answers))
		eventfd_write(gate->wake, 1);
	pthread_mutex_unlock(&gate->lock);
	tell(gate, &some);
}

int gate_answer_some(struct seal_gate *gate)
{
	struct list some;

	if (list_is_empty(&gate->answers))
		return 0;
	take_some(gate, BATCH, &some);
	pthread_mutex_unlock(&gate->lock);
	tell(gate, &some);
	pthread_mutex_lock(&gate->lock);
	return !list_is_empty(&gate->answers);
}

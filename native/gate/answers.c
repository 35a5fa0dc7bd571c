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

static struct waiter *take_some(struct seal_gate *gate, unsigned most)
{
	struct waiter *taken = gate->answers, **at = &gate->answers;

	while (*at && most--)
		at = &(*at)->next;
	gate->answers = *at;
	*at = NULL;
	return taken;
}

static void tell(struct seal_gate *gate, struct waiter *waiter)
{
	while (waiter) {
		struct waiter *next = waiter->next;

		gate_respond(gate, waiter->shard, waiter->event_fd, waiter->answer);
		free(waiter);
		waiter = next;
	}
}

void gate_unlock(struct seal_gate *gate)
{
	struct waiter *some = gate->answers ? take_some(gate, ANSWERS_AT_ONCE) : NULL;

	if (gate->answers)
		eventfd_write(gate->wake, 1);
	pthread_mutex_unlock(&gate->lock);
	tell(gate, some);
}

int gate_answer_some(struct seal_gate *gate)
{
	struct waiter *some;

	if (!gate->answers)
		return 0;
	some = take_some(gate, BATCH);
	pthread_mutex_unlock(&gate->lock);
	tell(gate, some);
	pthread_mutex_lock(&gate->lock);
	return gate->answers != NULL;
}

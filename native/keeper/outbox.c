#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/vector.h"
#include "internal.h"

#define UNREAD_FEW 64
#define UNREAD_LIMIT 4096

void outbox_init(struct outbox *outbox)
{
	memset(outbox, 0, sizeof(*outbox));
	pthread_mutex_init(&outbox->lock, NULL);
	outbox->socket = -1;
}

void outbox_open(struct outbox *outbox, int socket)
{
	SCOPED_LOCK(&outbox->lock);
	if (outbox->socket >= 0)
		close(outbox->socket);
	outbox->socket = socket;
	outbox->count = outbox->empty = 0;
}

static int sent(const struct outbox *outbox, const struct message *message)
{
	return send(outbox->socket, &message->report, message->size, MSG_DONTWAIT | MSG_NOSIGNAL) >=
	       0;
}

static int queue(struct outbox *outbox, const struct message *message)
{
	struct message *next = VECTOR_ADD(outbox, UNREAD_FEW);

	if (next)
		*next = *message;
	return next != NULL;
}

/* Room for very many is given back. */
static void shrink(struct outbox *outbox)
{
	size_t room = outbox->count * 2 > UNREAD_FEW ? outbox->count * 2 : UNREAD_FEW;
	struct message *smaller;

	if (outbox->room <= room * 2)
		return;
	smaller = realloc(outbox->at, room * sizeof(*smaller));
	if (smaller) {
		outbox->at = smaller;
		outbox->room = room;
	}
}

static void send_all(struct outbox *outbox)
{
	size_t done = 0;

	while (done < outbox->count && (!outbox->at[done].size || sent(outbox, &outbox->at[done])))
		outbox->empty -= !outbox->at[done++].size;
	if (!done)
		return;
	outbox->count -= done;
	memmove(outbox->at, outbox->at + done, outbox->count * sizeof(*outbox->at));
	shrink(outbox);
}

static void drop_empty(struct outbox *outbox)
{
	size_t kept = 0;

	for (size_t i = 0; i < outbox->count; i++)
		if (outbox->at[i].size)
			outbox->at[kept++] = outbox->at[i];
	outbox->count = kept;
	outbox->empty = 0;
	shrink(outbox);
}

/* A waiter has ended of which the owner has not heard yet: it need not hear of it at all. What is left
 * is bounded by how many may wait, however many come and go. Returns 1 when nothing of it was sent. */
static int forget(struct outbox *outbox, uint64_t waiter)
{
	int held = 0;

	for (size_t i = 0; i < outbox->count; i++) {
		struct message *message = &outbox->at[i];

		if (message->size != sizeof(struct seal_report) || message->report.waiter != waiter)
			continue;
		held |= message->report.kind == SEAL_REPORT_HELD &&
			!message->report.waited_us; /* else it may have been told */
		message->size = 0;
		outbox->empty++;
	}
	if (outbox->empty * 2 > outbox->count)
		drop_empty(outbox);
	return held;
}

/* `optional`: it may be dropped when the owner does not read. */
static void deliver(struct outbox *outbox, const struct message *message, int optional)
{
	SCOPED_LOCK(&outbox->lock);
	if (outbox->socket >= 0) {
		if (!outbox->postponed)
			send_all(outbox);
		if (!outbox->postponed && !outbox->count && sent(outbox, message))
			;
		else if ((optional && outbox->count >= UNREAD_LIMIT) || !queue(outbox, message))
			outbox->dropped++;
	}
}

static int unheard_of(struct outbox *outbox, uint64_t waiter)
{
	int forgotten;

	SCOPED_LOCK(&outbox->lock);
	if (!outbox->postponed)
		send_all(outbox);
	forgotten = outbox->count >= UNREAD_FEW && forget(outbox, waiter);
	return forgotten;
}

void outbox_deliver(void *context, const struct seal_report *report)
{
	struct message message = {.size = sizeof(*report), .report = *report};

	if (report->kind == SEAL_REPORT_ENDED && unheard_of(context, report->waiter))
		return;
	deliver(context, &message,
		report->kind == SEAL_REPORT_REFUSED || report->kind == SEAL_REPORT_TOUCHED);
}

void outbox_deliver_ring(void *context, const struct seal_ring_report *report)
{
	struct message message = {.size = sizeof(*report), .ring = *report};

	deliver(context, &message, 0);
}

void outbox_postpone(void *context, int postpone)
{
	struct outbox *outbox = context;

	SCOPED_LOCK(&outbox->lock);
	outbox->postponed = postpone;
}

void outbox_flush(void *context)
{
	struct outbox *outbox = context;

	SCOPED_LOCK(&outbox->lock);
	send_all(outbox);
}

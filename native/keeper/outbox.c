#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define UNREAD_LIMIT 4096

void outbox_init(struct outbox *outbox)
{
	memset(outbox, 0, sizeof(*outbox));
	pthread_mutex_init(&outbox->lock, NULL);
	outbox->socket = -1;
}

void outbox_open(struct outbox *outbox, int socket)
{
	pthread_mutex_lock(&outbox->lock);
	if (outbox->socket >= 0)
		close(outbox->socket);
	outbox->socket = socket;
	outbox->count = 0;
	pthread_mutex_unlock(&outbox->lock);
}

static int sent(const struct outbox *outbox, const struct message *message)
{
	return send(outbox->socket, &message->report, message->size, MSG_DONTWAIT | MSG_NOSIGNAL) >=
	       0;
}

static void queue(struct outbox *outbox, const struct message *message)
{
	if (outbox->count == outbox->room) {
		size_t room = outbox->room ? outbox->room * 2 : 64;
		struct message *grown = realloc(outbox->messages, room * sizeof(*grown));

		if (!grown)
			return;
		outbox->messages = grown;
		outbox->room = room;
	}
	outbox->messages[outbox->count++] = *message;
}

static void send_all(struct outbox *outbox)
{
	size_t done = 0;

	while (done < outbox->count && sent(outbox, &outbox->messages[done]))
		done++;
	outbox->count -= done;
	memmove(outbox->messages, outbox->messages + done,
		outbox->count * sizeof(*outbox->messages));
}

static void deliver(struct outbox *outbox, const struct message *message, int may_be_dropped)
{
	int waits;

	pthread_mutex_lock(&outbox->lock);
	if (outbox->socket >= 0) {
		if (!outbox->postponed)
			send_all(outbox);
		waits = outbox->postponed || outbox->count || !sent(outbox, message);
		if (waits && !(may_be_dropped && outbox->count >= UNREAD_LIMIT))
			queue(outbox, message);
	}
	pthread_mutex_unlock(&outbox->lock);
}

void outbox_deliver(void *context, const struct seal_report *report)
{
	struct message message = {.size = sizeof(*report), .report = *report};

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

	pthread_mutex_lock(&outbox->lock);
	outbox->postponed = postpone;
	pthread_mutex_unlock(&outbox->lock);
}

void outbox_flush(void *context)
{
	struct outbox *outbox = context;

	pthread_mutex_lock(&outbox->lock);
	send_all(outbox);
	pthread_mutex_unlock(&outbox->lock);
}

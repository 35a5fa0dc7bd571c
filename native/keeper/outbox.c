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

static int sent(const struct outbox *outbox, const struct seal_report *report)
{
	return send(outbox->socket, report, sizeof(*report), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

static void queue(struct outbox *outbox, const struct seal_report *report)
{
	if (report->kind == SEAL_REPORT_REFUSED && outbox->count >= UNREAD_LIMIT)
		return;
	if (outbox->count == outbox->room) {
		size_t room = outbox->room ? outbox->room * 2 : 64;
		struct seal_report *grown = realloc(outbox->reports, room * sizeof(*grown));

		if (!grown)
			return;
		outbox->reports = grown;
		outbox->room = room;
	}
	outbox->reports[outbox->count++] = *report;
}

void outbox_deliver(void *context, const struct seal_report *report)
{
	struct outbox *outbox = context;

	pthread_mutex_lock(&outbox->lock);
	if (outbox->socket >= 0 && (outbox->count || !sent(outbox, report)))
		queue(outbox, report);
	pthread_mutex_unlock(&outbox->lock);
}

void outbox_flush(struct outbox *outbox)
{
	size_t done = 0;

	pthread_mutex_lock(&outbox->lock);
	while (done < outbox->count && sent(outbox, &outbox->reports[done]))
		done++;
	outbox->count -= done;
	memmove(outbox->reports, outbox->reports + done, outbox->count * sizeof(*outbox->reports));
	pthread_mutex_unlock(&outbox->lock);
}

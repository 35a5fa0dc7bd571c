/* What the keeper's files share. One thread serves requests; reports come from the gate's threads. */
#ifndef SEALSVC_KEEPER_INTERNAL_H
#define SEALSVC_KEEPER_INTERNAL_H

#include <pthread.h>
#include <stddef.h>

#include "sealsvc/keeper.h"
#include "sealsvc/overlays.h"
#include "sealsvc/rings.h"

/* store.c: descriptors by name. */
struct store {
	struct kept {
		char name[KEEPER_NAME];
		int fd;
	} * at;
	size_t count, room;
};
/* Takes fd over. 0, -EINVAL (no name) or -ENOMEM. */
int store_keep(struct store *store, const char *name, int fd);
int store_drop(struct store *store, const char *name);
void store_clear(struct store *store);

/* outbox.c: reports on their way to the owner. Beyond a limit of unread ones, refusals and what the
 * tripwire tells are dropped, and counted; of a held operation that ended before its report was sent, nothing is told. */
struct outbox {
	pthread_mutex_t lock; /* the last: with it held no other is taken */
	int socket;	      /* -1: nobody listens, and nothing is kept */
	int postponed;
	struct message {
		size_t size;
		union {
			struct seal_report report;
			struct seal_ring_report ring;
		};
	} * at;
	size_t count, room;
	size_t empty; /* messages of size 0, which are not sent */
	uint64_t dropped;
};
void outbox_init(struct outbox *outbox);
/* Takes socket over, closes the one before, forgets what was unsent. */
void outbox_open(struct outbox *outbox, int socket);
void outbox_deliver(void *outbox, const struct seal_report *report);
void outbox_deliver_ring(void *outbox, const struct seal_ring_report *report);
/* While it is postponed, what is delivered is kept; it goes before whatever is delivered next, or when it
 * is flushed. */
void outbox_postpone(void *outbox, int postpone);
/* Send what was not, or could not be, sent before. */
void outbox_flush(void *outbox);

/* canary.c */
struct canary {
	pthread_mutex_t lock; /* the first: the rings' lock is taken with it held */
	pthread_cond_t stop;
	struct seal_rings *rings; /* suspended while it fails */
	int fd;			  /* -1: none */
	uint32_t trials, failing; /* enum keeper_canary_trial */
	uint32_t lapses;	  /* how often it began to fail */
	int started, stopping;
	pthread_t thread;
};
void canary_init(struct canary *canary, struct seal_rings *rings);
/* Takes fd over. Both as of the requests, or -errno. */
int64_t canary_set(struct canary *canary, int fd, uint32_t trials);
int64_t canary_ask(struct canary *canary);
void canary_stop(struct canary *canary);

/* serve.c */
struct keeper {
	struct seal_gate *gate; /* NULL: the kernel has none */
	int gate_error;
	struct seal_overlays *overlays; /* NULL: none are refused yet */
	struct seal_rings *rings;
	pthread_mutex_t rings_lock; /* where there is no gate */
	struct store store;
	struct canary canary;
	struct outbox outbox;
	int owner; /* connection, or -1 */
	int leaving;
};
/* Serve connections of the listening sockets (-1: none) until told to end. 0 or -errno. */
int keeper_serve(struct keeper *keeper, const int listener[2]);

/* rings.c: what KEEPER_RING asks. Takes fd (-1: none) over. */
int64_t keeper_ask_rings(struct keeper *keeper, const struct keeper_request *request, int fd,
			 struct keeper_reply *reply, int *fds);

/* requests.c: reply->count descriptors are stored in fds and stay the keeper's, but for that of
 * KEEPER_SNAPSHOT and KEEPER_RING. Takes fd (-1: none) over. `names` is filled by KEEPER_KEPT alone. */
void keeper_greet(struct keeper *keeper, int connection, const struct keeper_hello *hello,
		  struct keeper_greeting *greeting);
void keeper_answer(struct keeper *keeper, int connection, const struct keeper_request *request,
		   int fd, struct keeper_reply *reply, int *fds, struct keeper_names *names);

#endif

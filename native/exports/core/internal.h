/* A target, as its own parts see it. */
#ifndef EXPORT_INTERNAL_H
#define EXPORT_INTERNAL_H

#include <pthread.h>

#include "gate.h"
#include "seal.h"
#include "target.h"

struct export_target {
	struct export_options options; /* its strings are ours */
	char *strings[6];
	uint64_t size;
	uint32_t align; /* of O_DIRECT, in bytes */
	uint32_t zeroes_fast;
	struct export_stats *stats;
	struct export_gate gate;

	/* The file, as requests use it between enter and leave. */
	int fd;
	int dax, mapped_io;
	char *mapping; /* NULL: direct I/O, or returned */
	struct seal seal;
	/* Writes take it shared, what reads and then writes takes it exclusively. By requests that have entered
	 * the gate, with no other lock held. */
	pthread_rwlock_t order;

	/* The seal: whoever has `turn`. The gate's lock is taken with it held; it is never taken by a request that
	 * has entered the gate, since it may be held until all have left. */
	pthread_mutex_t turn;
	struct seal_client *client;
	int file; /* registered file; -1: none */
	int held; /* the seal is ours, and has to be returned */
	int recalled;
	int gone;  /* the ring: with it whatever kept the map in place */
	char *why; /* for messages of acquire(): EXPORT_ERROR_ROOM bytes */

	pthread_t thread;
	int started;
	int wake; /* eventfd: the thread has something to look at */
	uint32_t closing;
};

/* seal.c: with `turn` held and, but for the first acquire, the gate closed. */
int target_connect(struct export_target *target);
int target_acquire(struct export_target *target);
void target_unmap(struct export_target *target);
/* Unmaps, and gives back. 0, or -errno with `why`: what is left is ours still, to be tried again. */
int target_release(struct export_target *target);
void target_say(struct export_target *target, int level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* recall.c */
int recall_start(struct export_target *target);
void recall_stop(struct export_target *target);
/* The seal is not as we know it: have the thread look. From any thread. */
void recall_look(struct export_target *target);
/* With the gate closed by the caller: return the seal, however long the service is away. 0, or
 * -ESHUTDOWN. */
int recall_give_back(struct export_target *target);
/* With the gate closed by the caller: seal again, however long it takes. 0, or -ESHUTDOWN. */
int recall_reseal(struct export_target *target);
void recall_pause_begins(struct export_target *target, const char *why);
void recall_pause_ends(struct export_target *target);

#endif

/* What bpf_load.c makes and bpf.c uses. */
#ifndef SEALSVC_BPF_INTERNAL_H
#define SEALSVC_BPF_INTERNAL_H

#include <bpf/libbpf.h>
#include <pthread.h>
#include <time.h>

#include "bpf_programs.h"
#include "sealsvc/bpf.h"

#define SEAL_BPF_TRIPS 64

struct seal_bpf {
	struct bpf_object *object;
	struct bpf_link *links[BPF_PROGRAMS];
	struct seal_bpf_program programs[BPF_PROGRAMS];
	struct ring_buffer *ring;
	struct seal_bpf_control *control; /* mapped: the programs count in it as well */
	int files, underway;		  /* maps, owned by object */
	uint32_t sealed[SEAL_BPF_BITS];	  /* files behind each bit of control->sealed */
	uint64_t traceable;		  /* enum seal_bpf_traced, as this kernel has it */
	pthread_mutex_t lock;		  /* changes of entries; no other is taken with it held */
	uint64_t version;		  /* the last one given */
	uint64_t untracked;		  /* as the last barrier saw it */
	struct seal_bpf_event *events;	  /* where the ring's callback puts them */
	size_t event_count, event_room;
	struct seal_bpf_trip trips[SEAL_BPF_TRIPS]; /* read from the ring, and not asked for yet */
	size_t trip_count;
	struct bpf_object *trip_objects[SEAL_TRIP_FUNCTIONS];
	struct bpf_link *trip_links[SEAL_TRIP_FUNCTIONS];
	struct seal_bpf_program trip_programs[SEAL_TRIP_FUNCTIONS];
};

/* CLOCK_MONOTONIC, ns: what bpf_ktime_get_ns() gives the programs. */
static inline uint64_t bpf_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* bpf_load.c */
int bpf_load(struct seal_bpf *bpf, const char *object, const char *directory, const char *without,
	     char *why, size_t size);
int bpf_attach(struct seal_bpf *bpf);
int bpf_pin(struct seal_bpf *bpf, const char *directory);

/* bpf_log.c */
/* Keep what libbpf says from now on; what it said before is forgotten. */
void bpf_log_begin(void);
/* 1 when the last program that libbpf named is this one. */
int bpf_log_is_about(const char *program);
/* `error` is negative; libbpf's last warning is added. */
void bpf_explain(char *why, size_t size, const char *what, int error);

/* bpf_pins.c: 0 or -errno */
int bpf_pin_maps_below(struct bpf_object *object, const char *directory);
/* In place of a link that is pinned by this name: that one goes when this is in force. */
int bpf_pin_link(struct bpf_link *link, const char *directory, const char *name);

/* bpf_trip.c */
int bpf_is_trip(const char *name);
int bpf_take_trip(void *bpf, void *data, size_t size); /* a ring's callback */
void bpf_close_trips(struct seal_bpf *bpf);

#endif

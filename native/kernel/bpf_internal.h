/* What bpf_load.c makes and bpf.c uses. */
#ifndef SEALSVC_BPF_INTERNAL_H
#define SEALSVC_BPF_INTERNAL_H

#include <bpf/libbpf.h>
#include <pthread.h>
#include <time.h>

#include "bpf_programs.h"
#include "sealsvc/bpf.h"

struct seal_bpf {
	struct bpf_object *object;
	struct bpf_link *links[BPF_PROGRAMS];
	struct seal_bpf_program programs[BPF_PROGRAMS];
	struct ring_buffer *ring;
	struct seal_bpf_control *control; /* mapped: the programs count in it as well */
	int files, underway;		  /* maps, owned by object */
	uint32_t sealed[SEAL_BPF_BITS];	  /* files behind each bit of control->sealed */
	uint64_t traceable;		  /* enum seal_bpf_traced, as this kernel has it */
	pthread_mutex_t lock;		  /* changes of entries */
	uint64_t version;		  /* the last one given */
	uint64_t untracked;		  /* as the last barrier saw it */
	struct seal_bpf_event *events;	  /* where the ring's callback puts them */
	size_t event_count, event_room;
};

/* CLOCK_MONOTONIC, ns: what bpf_ktime_get_ns() gives the programs. */
static inline uint64_t bpf_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int bpf_load(struct seal_bpf *bpf, const char *object, const char *directory, const char *without,
	     char *why, size_t size);
int bpf_attach(struct seal_bpf *bpf);
int bpf_pin(struct seal_bpf *bpf, const char *directory);

#endif

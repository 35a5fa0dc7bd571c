/* What the ring's files share. Everything is guarded by the one lock, but for what a client writes:
 * that is copied once, checked, and never looked at again. */
#ifndef SEALSVC_RING_INTERNAL_H
#define SEALSVC_RING_INTERNAL_H

#include "abi/seal_ring_geometry.h"
#include "sealsvc/rings.h"
#include "sealsvc/transitions.h"

#define SEAL_RINGS_WATCHED 8
#define COMMAND_PATIENCE_NS (UINT64_C(30) * 1000000000) /* for what was forwarded */

struct registration {
	struct seal_registration is; /* id 0: the index is free */
	int open;		     /* the service lets seals be granted in it */
	int stale;		     /* its map may have changed since it was read */
	struct seal_guard owed; /* hull of what was given back without a proof; end 0: nothing */
	uint32_t live;		/* slots */
	struct seal_map_extent *map;
	size_t map_count;
	struct lane *lane; /* to its PI channel; NULL: it has none */
};

/* PI commands of one registration on their way to its channel. */
struct lane {
	int socket;
	uint32_t first, count;		   /* of `place`, which is a ring */
	uint32_t place[SEAL_RING_PENDING]; /* entries that wait for their answers, in order */
};

/* What seal_slot.adopted says of a seal that is the service's to change. */
enum adopted {
	ADOPTED = 1,	    /* and was reported to it */
	ADOPTED_BEFORE = 2, /* and was reported to an earlier service */
};

/* A command that the service is to answer. */
struct pending {
	uint64_t handle; /* 0: free */
	int reported;	 /* to the service that owns the rings now */
	uint64_t due_ns;
	uint32_t place; /* of its entry */
	struct seal_command command;
};

struct ring {
	uint32_t number;
	struct seal_ring_shape shape;
	struct ring_geometry command_ring, event_ring; /* in bytes; in events */
	struct seal_mailbox *mailbox;		       /* and all that follows it */
	size_t memory_size;
	struct seal_command *commands; /* places, not entries */
	struct seal_ring_event *events;
	char *data;
	struct seal_slot *slots;
	uint32_t *free; /* a stack of slots that were used before */
	uint32_t free_count, high;
	int memory_fd, table_fd, kick_fd, bell_fd;
	/* Ours; what stands in the mailbox is for the client to read. */
	uint32_t tail, event_head, flags;
	uint64_t next_expiry; /* ns; UINT64_MAX: none */
	struct registration *files;
	struct pending pending[SEAL_RING_PENDING];
	uint64_t grants, returns, recalls, commands_seen;
	struct seal_ring_counters *counters; /* of all rings */
};

struct seal_rings {
	pthread_mutex_t
		*lock; /* the gate's, where there is one: see struct seal_gate for the order */
	seal_rings_deliver *deliver;
	void *context;
	struct ring *ring[SEAL_RINGS_MAX]; /* by the low bits of its number */
	uint32_t generation;
	uint64_t next_id, next_handle;
	int epoll, wake;
	struct seal_ring_counters counters;
	/* The thread's own: rings that have more to do, by their place in `ring`. */
	uint16_t busy[SEAL_RINGS_MAX];
	uint8_t is_busy[SEAL_RINGS_MAX];
	unsigned busy_count;
	/* Rings that are looked at before we sleep: they need not kick. */
	uint16_t watched[SEAL_RINGS_WATCHED];
	unsigned watched_count;
	uint64_t served_ns; /* when the last command was */
	uint64_t patience_ns;
	unsigned calm;	  /* turns since it was lost */
	uint64_t spin_ns; /* the most of it; any thread's to set */
	int suspended;	  /* no grants: they are forwarded, and answered with -EAGAIN */
	int started, stopping;
	pthread_t thread;
};

/* memory.c */
uint64_t ring_now_ns(void);
struct ring *ring_find(struct seal_rings *rings, uint32_t number);
void ring_flag(struct ring *ring, uint32_t flag);
/* Ring the client's bell, if it sleeps. */
void ring_bell(struct ring *ring);
void ring_free(struct ring *ring);
void ring_lane_free(struct lane *lane);

/* events.c */
void ring_push(struct ring *ring, const struct seal_ring_event *event);
void ring_tell_seal(struct ring *ring, uint32_t kind, uint32_t slot);

/* The registration of this number, or NULL. */
static inline struct registration *ring_file(struct ring *ring, uint32_t file)
{
	return file < SEAL_RING_FILES && ring->files[file].is.id ? &ring->files[file] : NULL;
}

/* table.c: the only writer of slots */
struct seal_slot *table_live(struct ring *ring, uint32_t slot);
int64_t table_take(struct ring *ring);
/* Write the seal with this state; everything else was written before. */
void table_publish(struct seal_slot *slot, uint32_t state, uint32_t seqid);
/* The next state and seqid; 0, or -EINVAL: there is no such step. */
int table_step(struct seal_slot *slot, enum seal_step step);
/* The seal is over, and its slot can be taken again. */
void table_release(struct ring *ring, uint32_t slot);
/* The bytes it holds still: whole blocks. */
struct seal_guard table_guard(const struct seal_slot *slot, const struct registration *file);

/* registrations.c */
/* It is given back, and nobody has looked whether it is still mapped. */
void ring_owe(struct registration *file, const struct seal_slot *slot);
/* Recall one that is quiet: the step, the news to the client, the report to the service. */
void ring_recall(struct seal_rings *rings, struct ring *ring, uint32_t slot);
/* It is over without the service, which hears of it where it ever heard of the seal; `was` before. */
void ring_report_end(struct seal_rings *rings, struct ring *ring, uint32_t slot, uint64_t was);

/* forward.c */
/* Answers an entry that was copied, or leaves it to the service. */
void ring_serve(struct seal_rings *rings, struct ring *ring, uint32_t place,
		struct seal_command *command);
/* How many were aborted. */
unsigned ring_abort_overdue(struct ring *ring, uint64_t now_ns);

/* commands.c: 1: done, with command->status; 0: it is for the service. */
/* `slot` and `word` of such a command name one; those of a grant or a copy do not. */
int ring_is_about_a_seal(uint16_t op);
int ring_execute(struct seal_rings *rings, struct ring *ring, struct seal_command *command);
void ring_answer(struct ring *ring, uint32_t place, const struct seal_command *command);

/* lanes.c: PI commands */
#define RING_LANE (UINT64_C(1) << 63) /* events of the epoll set that are a lane's */
/* Answers a PI command, or leaves it to the channel of its registration. */
void ring_lane_serve(struct ring *ring, uint32_t place, const struct seal_command *command);
/* Completes what the channel has answered. */
void ring_lane_heard(struct seal_rings *rings, uint64_t event);
/* What is in flight is completed with ESTALE. */
void ring_lane_end(struct seal_rings *rings, struct ring *ring, struct registration *file);

/* consumer.c */
unsigned ring_consume(struct seal_rings *rings, struct ring *ring, unsigned budget);

#endif

/* Rings: clients that are served natively, in the keeper, by one thread of their own.
 *
 * A client registers a file through the service, which does the whole order of a grant for it, once.
 * From then on a seal on a part of the registered range needs no more than a slot in the client's seal
 * table: the table is the list of guards. An operation that reaches the gate and conflicts with the
 * registered range is judged here (seal_rings_judge), against the slots:
 *
 *   - it meets a live seal: held (or refused), and the seal is recalled on the spot;
 *   - it meets none, but some were given back without a proof: held as unproven, until the service has
 *     proven that nothing of the client's maps what it would change (seal_rings_absolve, through the
 *     gate), or has recalled the registration;
 *   - it meets none: it passes, and the registration is stale: no seal is granted in it before the
 *     service has read the map anew (seal_ring_freshen).
 *
 * A seal to which nothing happens is quiet: the service knows nothing of it. The first thing that is
 * not quiet marks it `adopted`, under the lock, and tells the service: from then on its state is the
 * service's to change, and its commands are forwarded.
 *
 * Everything is guarded by one lock, the gate's: what the gate judges and what is granted cannot pass
 * each other. Nothing a client writes is read twice.
 */
#ifndef SEALSVC_RINGS_H
#define SEALSVC_RINGS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "seal_ring.h"
#include "sealsvc/gate.h"

#define SEAL_RINGS_MAX 4096
#define SEAL_RING_FILES 256  /* registrations of one client */
#define SEAL_RING_PENDING 64 /* forwarded commands of one client */

struct seal_rings;

enum seal_ring_report_kind {
	SEAL_RING_FORWARD = 100, /* a command for the service; its seal, if any, is adopted */
	SEAL_RING_ADOPTED,	 /* a seal was recalled, and is the service's now */
	SEAL_RING_OVER, /* one that was the service's once, and is quiet since, has ended */
};

struct seal_ring_report {
	int32_t kind;
	uint32_t ring;
	uint64_t handle; /* FORWARD: for seal_ring_complete; OVER: the seal's last word */
	uint32_t slot, file;
	struct seal_slot seal; /* as it was before */
	struct seal_command command;
};

/* Called with the lock held: must neither block nor call back. */
typedef void seal_rings_deliver(void *context, const struct seal_ring_report *report);

/* `lock` is the gate's, or any other where there is no gate. 0 or -errno. */
int seal_rings_open(struct seal_rings **out, pthread_mutex_t *lock, seal_rings_deliver *deliver,
		    void *context);
/* Start the thread that serves them; without it, seal_rings_poll does. 0 or -errno. */
int seal_rings_start(struct seal_rings *rings);
void seal_rings_close(struct seal_rings *rings);

/* The thread looks at rings that are in use for so long before it sleeps; 0: not at all, as on a machine
 * with one processor. */
void seal_rings_spin(struct seal_rings *rings, uint32_t us);

/* Serve what waits in the commands of one ring (at most `budget` of them): how many there were. */
unsigned seal_ring_poll(struct seal_rings *rings, uint32_t ring, unsigned budget);

/* Time-outs of commands and ends of ttls that are due. `now_ns` of CLOCK_BOOTTIME. */
void seal_rings_tick(struct seal_rings *rings, uint64_t now_ns);

struct seal_ring_shape {
	uint32_t slots;
	uint32_t commands, data; /* bytes, powers of two */
	uint32_t events;	 /* a power of two */
	uint32_t owner;		 /* uid */
	uint64_t secret;	 /* for who wants to attach again */
};

enum seal_ring_fd {
	SEAL_RING_FD_MEMORY,
	SEAL_RING_FD_TABLE,
	SEAL_RING_FD_KICK, /* an eventfd to write to */
	SEAL_RING_FD_BELL, /* an epoll descriptor that the keeper's eventfd is in */
	SEAL_RING_FDS,
};

/* A new ring; its number, or -EINVAL (the shape), -ENOSPC, -errno. */
int64_t seal_ring_create(struct seal_rings *rings, const struct seal_ring_shape *shape);
/* Descriptors for a client, which the caller closes. The bell is the client's alone: it can neither
 * fill the eventfd behind it nor have our write to that block. 0 or -errno. */
int seal_ring_descriptors(struct seal_rings *rings, uint32_t ring, int fds[SEAL_RING_FDS]);
/* Forget a ring without registrations. 0, -ENOENT, -EBUSY. */
int seal_ring_drop(struct seal_rings *rings, uint32_t ring);

/* Bytes; `id` is the token of the registration's own guard. `watched`: the gate asks
 * seal_rings_judge; else a guard of its own holds the whole range. */
struct seal_registration {
	uint64_t id, start, end;
	uint64_t grace; /* ns */
	int32_t holder;
	uint32_t block_size;
	uint32_t policy; /* SEAL_POLICY_WAIT or _REFUSE: that of its seals */
	uint32_t iomode, watched;
	uint64_t device, inode;
};
/* Register; `map` is a memfd with the extents that can be sealed (struct seal_map_extent, in order), -1:
 * none. Taken over. Its
 * index, or -ENOENT, -ENOSPC, -errno. Closed until seal_ring_freshen. */
int64_t seal_ring_register(struct seal_rings *rings, uint32_t ring,
			   const struct seal_registration *registration, int map);
/* Every seal in it that is not adopted ends with it, as returned, or as `state` says. 0, -ENOENT. */
int seal_ring_unregister(struct seal_rings *rings, uint32_t ring, uint32_t file, uint32_t state);
/* Grant in it from now on: its map was read (`map` as above) behind a guard that holds all. */
int seal_ring_freshen(struct seal_rings *rings, uint32_t ring, uint32_t file, int map);
/* Grant nothing in it any more; with `recall` its seals that overlap [start, end) are recalled. */
int seal_ring_close(struct seal_rings *rings, uint32_t ring, uint32_t file, int recall,
		    uint64_t start, uint64_t end);
/* 1 when an operation changed, or may have changed, its map since it was freshened. */
int seal_ring_is_stale(struct seal_rings *rings, uint32_t ring, uint32_t file);

/* The holder's end of the PI channel of a registration (SOCK_SEQPACKET), which is taken over: SEAL_CMD_PI_WRITE and
 * SEAL_CMD_PI_READ go there, in place of an earlier one. 0, -ENOENT, -errno. */
int seal_ring_channel(struct seal_rings *rings, uint32_t ring, uint32_t file, int socket);

/* Until it is called with 0: no seal is granted natively, and none that is forwarded. */
void seal_rings_suspend(struct seal_rings *rings, int suspended);

/* The gate's question about a registration, by the number that names it there: SEAL_POLICY_* or -1,
 * with *error as in gate_judge. *unproven: its id when only a proof is missing. The lock is held. */
int seal_rings_judge(void *rings, uint64_t key, const struct seal_operation *operation,
		     const struct seal_traits *traits, int by_holder, int absolved, int *error,
		     uint64_t *unproven);
uint64_t seal_ring_key(uint32_t ring, uint32_t file);

/* The service's hand on one seal. Fields as in the slot. */
struct seal_terms {
	uint64_t id, offset, length, expires, deadline, cookie;
	uint32_t state, seqid, iomode, policy;
};
/* A slot for a seal that the service grants itself: its number, or -ENOENT, -ENOSPC. */
int64_t seal_slot_take(struct seal_rings *rings, uint32_t ring, const struct seal_terms *terms);
/* New terms of an adopted seal (-ENOENT: the slot has another). One that is over frees its slot. The
 * gate judges what waits anew when the caller asks it to. */
int seal_slot_set(struct seal_rings *rings, uint32_t ring, uint32_t slot,
		  const struct seal_terms *terms);
/* It is quiet again: native code serves it. */
int seal_slot_quiet(struct seal_rings *rings, uint32_t ring, uint32_t slot, uint64_t id);

/* The answer to a forwarded command: 0, -errno, or SEAL_RING_AGAIN for a grant whose registration was
 * freshened; `copied` is a copy's bytes. 0, or -ENOENT (it timed out). */
#define SEAL_RING_AGAIN 1
int seal_ring_complete(struct seal_rings *rings, uint32_t ring, uint64_t handle, int32_t status,
		       uint64_t copied);
/* Tell the client something. 0 or -ENOENT. */
int seal_ring_tell(struct seal_rings *rings, uint32_t ring, const struct seal_ring_event *event);

/* Another service receives the reports from `begin` on, which is called with the rings' lock held: no
 * report comes in between. */
void seal_rings_hand_over(struct seal_rings *rings, void (*begin)(void *context), void *context);
/* The commands that wait, and the seals that are the service's to change, are reported: each that was
 * reported to an earlier service only. */
void seal_rings_replay(struct seal_rings *rings);

/* Since the start, of all rings that there were. */
#define SEAL_RING_OPCODES 12 /* SEAL_CMD_PROGRESS and all before it; the last counts all others */
struct seal_ring_counters {
	uint64_t commands[SEAL_RING_OPCODES];
	uint64_t forwarded;
	uint64_t broken;       /* rings that were flagged so */
	uint64_t dropped;      /* events that did not fit */
	uint64_t rung, spared; /* bells: the client slept, or did not */
};
void seal_rings_count(struct seal_rings *rings, struct seal_ring_counters *out);

/* What there is, for a service that has just started. */
struct seal_ring_row {
	uint32_t ring, owner, slots, used;
	uint64_t secret, grants, returns, recalls, commands;
	uint64_t bytes; /* of shared memory */
};
struct seal_file_row {
	uint32_t ring, file, live, stale;
	uint64_t id;
};
/* At most `max` are stored; both return how many there are. */
size_t seal_rings_list(struct seal_rings *rings, struct seal_ring_row *out, size_t max);
size_t seal_rings_files(struct seal_rings *rings, struct seal_file_row *out, size_t max);
/* The seal in a slot. 0, or -ENOENT. */
int seal_slot_read(struct seal_rings *rings, uint32_t ring, uint32_t slot, struct seal_slot *out);

#endif

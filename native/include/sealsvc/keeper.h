/* The keeper: the process that outlives the service, and the messages it is spoken to by.
 *
 * It owns the gate, so that every operation on a sealed file goes on being judged while the service is
 * dead, and keeps descriptors by name (leases, pins, the journal of seals). It decides nothing: guards
 * change only when its owner says so. One owner at a time; a new one finds everything as it was left.
 *
 * A message is one SOCK_SEQPACKET datagram: a request with at most one descriptor, answered in order
 * by a reply with at most KEEPER_BATCH. Only its own user may connect.
 *
 * It listens at a path, and at an abstract name of that path (unix(7)), which goes with the process and
 * with nothing else: while it lives there is no other keeper of the path, and a service finds it although
 * the path was unlinked.
 */
#ifndef SEALSVC_KEEPER_H
#define SEALSVC_KEEPER_H

#include <stdint.h>

#include "sealsvc/gate.h"
#include "sealsvc/rings.h"

#define KEEPER_VERSION 5
#define KEEPER_NAME 64	 /* bytes of a name, NUL included */
#define KEEPER_BATCH 200 /* descriptors in one reply; the kernel takes 253 (SCM_MAX_FD) */

enum keeper_op {
	KEEPER_OWN,	   /* fd: the SEQPACKET socket that reports go to; -EBUSY: another owns it.
			      argument: the version. The owner's process passes unjudged. */
	KEEPER_GATE,	   /* 0, or the -errno for which there is no gate on this kernel */
	KEEPER_ARM,	   /* fd: seal_gate_arm */
	KEEPER_WATCH,	   /* fd, traits: seal_gate_watch */
	KEEPER_UNWATCH,	   /* device, inode */
	KEEPER_GUARD,	   /* device, inode, guard */
	KEEPER_UNGUARD,	   /* device, inode, id */
	KEEPER_PASSAGES,   /* device, inode */
	KEEPER_OWN_EVENTS, /* device, inode */
	KEEPER_REPLAY,	   /* seal_gate_replay: on the report socket */
	KEEPER_ABSOLVE,	   /* id: the waiter; guard.id: the registration */
	KEEPER_COUNT,	   /* counters */
	KEEPER_KEEP,	   /* name, fd: keep it; one of the same name is replaced */
	KEEPER_DROP,	   /* name: -ENOENT when it is not kept */
	KEEPER_KEPT,	   /* id: the first; names and descriptors; result: how many there are */
	KEEPER_SNAPSHOT,   /* fd of a memfd: keeper_snapshot, files, guards */
	KEEPER_FILES,	/* id: the first; O_PATH descriptors of the files in the snapshot's order */
	KEEPER_LEAVE,	/* 1: nothing is sealed or kept but `name`, the keeper ends; 0: it stays */
	KEEPER_RELEASE, /* let everything go and end; -EBUSY while another owns it */
	KEEPER_RING,	/* ring: see below */
	KEEPER_PROVER,	/* fd: seal_gate_prover */
	KEEPER_REFUSE_OVERLAYS, /* fd: seal_overlays_refuse */
	KEEPER_OVERLAYS_REFUSED,
	KEEPER_CANARY_SET, /* fd: a memfd of two blocks, sealed for BPF; -1: none any more. argument:
			      the trials. result: as of KEEPER_CANARY, of the one before as well */
	KEEPER_CANARY, /* tried now. result: how often it began to fail << 32 | those that fail */
};

/* Operations on the canary's file that must be refused. */
enum keeper_canary_trial {
	KEEPER_CANARY_TRUNCATE = 1,
	KEEPER_CANARY_FALLOCATE = 2,
	KEEPER_CANARY_COPY = 4,
	KEEPER_CANARY_IOCTL = 8,
	KEEPER_CANARY_ATOMIC = 16,
};
#define KEEPER_CANARY_BLOCK 4096

/* What is asked of the rings (sealsvc/rings.h), by the names of the functions. */
enum keeper_ring_op {
	KEEPER_RING_CREATE,	 /* shape */
	KEEPER_RING_DESCRIPTORS, /* SEAL_RING_FDS descriptors */
	KEEPER_RING_DROP,
	KEEPER_RING_REGISTER,	/* registration, fd */
	KEEPER_RING_UNREGISTER, /* state */
	KEEPER_RING_FRESHEN,	/* fd */
	KEEPER_RING_CLOSE,	/* state: recall as well; start, end */
	KEEPER_RING_STALE,
	KEEPER_RING_COMPLETE, /* handle, status, end: bytes that a copy did */
	KEEPER_RING_TELL,     /* event */
	KEEPER_RING_REPLAY,
	KEEPER_RING_LIST,    /* memfd: keeper_rings, seal_ring_row, seal_file_row */
	KEEPER_SLOT_TAKE,    /* terms */
	KEEPER_SLOT_SET,     /* slot, terms; what waits on (device, inode) is judged anew */
	KEEPER_SLOT_QUIET,   /* slot, terms.id */
	KEEPER_RING_SPIN,    /* handle: us */
	KEEPER_RING_CHANNEL, /* fd */
};

struct keeper_ring_request {
	uint32_t op, ring, file, slot, state;
	int32_t status;
	uint64_t handle, start, end;
	union {
		struct seal_ring_shape shape;
		struct seal_registration registration;
		struct seal_terms terms;
		struct seal_ring_event event;
	};
};

/* Keepers of every version from 5 on understand this, from anybody who may connect. It is told from a
 * request by its size, and neither changes ever: so kin of different versions can say why they part. */
enum keeper_hello_op {
	KEEPER_HELLO_ASK = 0x4c454853, /* "SHEL" */
	KEEPER_HELLO_LEAVE,	       /* as KEEPER_LEAVE, of "journal"; -EBUSY: it has an owner */
	KEEPER_HELLO_RELEASE,	       /* as KEEPER_RELEASE */
};
struct keeper_hello {
	uint32_t op, version;
};
struct keeper_greeting {
	int64_t result;
	uint32_t version, pid;
};

struct keeper_request {
	uint32_t op, argument;
	uint64_t device, inode, id;
	struct seal_guard guard;
	struct seal_traits traits;
	char name[KEEPER_NAME];
	struct keeper_ring_request ring;
};

struct keeper_reply {
	int64_t result; /* as the function's, or -errno */
	uint64_t count; /* descriptors beside the reply */
	struct seal_gate_counters counters;
};

/* After the reply of KEEPER_KEPT. */
struct keeper_names {
	char name[KEEPER_BATCH][KEEPER_NAME];
};

struct keeper_rings {
	uint64_t rings, files; /* rows */
	struct seal_ring_counters counters;
};

struct keeper_snapshot {
	uint64_t files, guards;
};

#endif

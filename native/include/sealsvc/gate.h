/* The gate: a fanotify group of class PRE_CONTENT and the two threads that answer it (Linux 6.14+).
 *
 * Every operation on a watched file stops in the kernel until the gate answers. What conflicts with
 * no guard is answered by the reader thread at once, without any lock that a caller could hold across
 * a system call. What conflicts is held, and reported.
 *
 * The threads answer events of their own process, and of the one process that is exempt, before they
 * look at anything else, so that no call of these on a watched file can wait for itself.
 */
#ifndef SEALSVC_GATE_H
#define SEALSVC_GATE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "sealsvc/verdict.h"

#define SEAL_SERVICE_COMM "sealsvc" /* what every thread of a service is called (PR_SET_NAME) */

struct seal_gate;

enum seal_report_kind {
	SEAL_REPORT_HELD,    /* waits in the kernel until it is answered or freed */
	SEAL_REPORT_REFUSED, /* was denied with `result` */
	SEAL_REPORT_ENDED,   /* a held one went on (result 0), was denied, or died (result EINTR) */
	SEAL_REPORT_UNPROVEN, /* waits for seal_gate_absolve: `unproven` is a registration's guard */
	SEAL_REPORT_TOUCHED, /* was let through on a guarded file, and is no proven read: `operation`
				 is one of perhaps several */
};

struct seal_report {
	uint64_t waiter; /* names a held operation; 0 for one refused at once */
	uint64_t device, inode;
	struct seal_operation operation;
	int32_t kind, tgid, result;
	uint32_t uid;
	uint64_t waited_us, unproven;
	char comm[16];
};

/* Where reports go. `deliver` and `postpone` are called by any thread with the gate's lock held; none may
 * block or call back. While `postpone` is 1, what is delivered is kept, for `flush` or the next that is
 * delivered: whoever a conflict concerns is woken before anybody is told of it. */
struct seal_gate_outlet {
	void (*deliver)(void *context, const struct seal_report *report);
	void (*postpone)(void *context, int postpone);
	void (*flush)(void *context);
	void *context;
};

/* Creates the group and starts the threads. 0 or -errno (-EINVAL: the kernel has no FAN_PRE_ACCESS,
 * -EPERM: CAP_SYS_ADMIN is missing). */
int seal_gate_open(struct seal_gate **out, const struct seal_gate_outlet *outlet);

/* Stops the threads and closes the group; the kernel lets everything that is held go on. */
void seal_gate_close(struct seal_gate *gate);

/* Operations of process `tgid` (0: of none) pass unjudged from now on. */
void seal_gate_exempt(struct seal_gate *gate, int32_t tgid);

/* Arm the file system of fd: a super-block mark with an ignore mask, which raises no events but has
 * every descriptor opened from now on watched by a later mark of its inode. 0 or -errno. */
int seal_gate_arm(struct seal_gate *gate, int fd);

/* Watch the inode of fd, of which `traits` tells. 0 or -errno. Watching it twice updates traits. */
int seal_gate_watch(struct seal_gate *gate, int fd, const struct seal_traits *traits);
/* Stop watching. 0, -ENOENT, or -EBUSY while it has guards. */
int seal_gate_unwatch(struct seal_gate *gate, uint64_t device, uint64_t inode);

/* Guards of a watched file. Adding one whose id is there replaces it. Every change judges the held
 * operations of the file again and answers those that are now free. 0, -ENOENT or -ENOMEM. */
int seal_gate_guard(struct seal_gate *gate, uint64_t device, uint64_t inode,
		    const struct seal_guard *guard);
int seal_gate_unguard(struct seal_gate *gate, uint64_t device, uint64_t inode, uint64_t id);

/* How many operations that the gate let through, and that may change a map of this file, are still
 * under way; or -ENOENT. Conflicts with present guards are held, so that after a 0 the map changes no
 * more. */
int64_t seal_gate_passages(struct seal_gate *gate, uint64_t device, uint64_t inode);

/* How often a process that passes unjudged was seen at this file; or -ENOENT. An access of no bytes
 * by it moves this exactly when the description it used is watched. */
int64_t seal_gate_own_events(struct seal_gate *gate, uint64_t device, uint64_t inode);

/* Guards with SEAL_POLICY_WATCH are judged by this function, with the lock held: what it returns is
 * SEAL_POLICY_* or -1 (free), with *error the errno at once (0: none) and *unproven the guard's id when
 * nothing but a proof is missing. `absolved`: the proof was given for this operation. Without one they
 * count as SEAL_POLICY_WAIT. */
typedef int seal_gate_watch_judge(void *context, uint64_t watch,
				  const struct seal_operation *operation,
				  const struct seal_traits *traits, int by_holder, int absolved,
				  int *error, uint64_t *unproven);
void seal_gate_on_watch(struct seal_gate *gate, seal_gate_watch_judge *judge, void *context);
/* With this descriptor (seal_is_mapped; -1: none) the gate finds the proof itself, where nobody maps the
 * file. 0 or -errno. */
int seal_gate_prover(struct seal_gate *gate, int prover);
/* It is proven that nothing is left of what guard `id` kept of the part that a held operation would
 * change. 0, -ENOENT (it is gone) or -ENOSPC (it has met too many registrations, and is denied). */
int seal_gate_absolve(struct seal_gate *gate, uint64_t waiter, uint64_t id);
/* Judge what is held on a file anew. 0 or -ENOENT. */
int seal_gate_settle(struct seal_gate *gate, uint64_t device, uint64_t inode);
/* What guards the gate's tables; nobody who holds it may call the gate or block. */
pthread_mutex_t *seal_gate_lock(struct seal_gate *gate);

/* Report at once what would be reported in a moment: of operations whose holders were woken first. The
 * lock is held. */
void seal_gate_tell(struct seal_gate *gate);

/* Report what is held once more, to somebody who has not heard of it. */
void seal_gate_replay(struct seal_gate *gate);

/* Answer a held operation: errno 0 lets it go on, else EPERM, EIO, EAGAIN, EBUSY, ETXTBSY, ENOSPC or
 * EDQUOT is what its caller gets. 0, -ENOENT (it is gone) or -EINVAL. */
int seal_gate_answer(struct seal_gate *gate, uint64_t waiter, int error);

/* What is watched, and guarded. `fd` is an O_PATH descriptor that belongs to the gate. */
struct seal_gate_file {
	uint64_t device, inode;
	struct seal_traits traits;
	int32_t fd;
	uint32_t guards;
};
struct seal_gate_guard {
	uint64_t device, inode;
	struct seal_guard guard;
};
/* At most `max` are stored; both return how many there are. The order is stable while nothing
 * changes. */
size_t seal_gate_files(struct seal_gate *gate, struct seal_gate_file *out, size_t max);
size_t seal_gate_guards(struct seal_gate *gate, struct seal_gate_guard *out, size_t max);

struct seal_gate_counters {
	uint64_t events, own, passed, held, refused, failed_answers, files, waiters;
	uint64_t crowded, lost_looks, dropped_reports;
};
void seal_gate_count(struct seal_gate *gate, struct seal_gate_counters *out);

#endif

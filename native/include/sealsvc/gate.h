/* The gate: a fanotify group of class PRE_CONTENT and the two threads that answer it (Linux 6.14+).
 *
 * Every operation on a watched file stops in the kernel until the gate answers. What conflicts with
 * no guard is answered by the reader thread at once, without any lock that a caller could hold across
 * a system call, and without the GIL. What conflicts is held, and reported.
 *
 * The threads answer events of their own process before they look at anything else, so that no call
 * of this process on a watched file can wait for itself.
 */
#ifndef SEALSVC_GATE_H
#define SEALSVC_GATE_H

#include <stddef.h>
#include <stdint.h>

#include "sealsvc/verdict.h"

struct seal_gate;

/* Creates the group and starts the threads. 0 or -errno (-EINVAL: the kernel has no FAN_PRE_ACCESS,
 * -EPERM: CAP_SYS_ADMIN is missing). */
int seal_gate_open(struct seal_gate **out);

/* Stops the threads and closes the group; the kernel lets everything that is held go on. */
void seal_gate_close(struct seal_gate *gate);

/* An eventfd that is readable while reports wait. Owned by the gate. */
int seal_gate_fd(const struct seal_gate *gate);

/* Arm the file system of fd: a super-block mark with an ignore mask, which raises no events but has
 * every descriptor opened from now on watched by a later mark of its inode. 0 or -errno. */
int seal_gate_arm(struct seal_gate *gate, int fd);

/* Watch the inode of fd, of which `traits` tells. 0 or -errno. Watching it twice updates traits. */
int seal_gate_watch(struct seal_gate *gate, int fd, const struct seal_traits *traits);
/* Stop watching; -EBUSY while it has guards. fd is any descriptor of the file. */
int seal_gate_unwatch(struct seal_gate *gate, int fd);

/* Guards of a watched file. Adding one whose id is there replaces it. Every change judges the held
 * operations of the file again and answers those that are now free. 0, -ENOENT or -ENOMEM. */
int seal_gate_guard(struct seal_gate *gate, uint64_t device, uint64_t inode,
		    const struct seal_guard *guard);
int seal_gate_unguard(struct seal_gate *gate, uint64_t device, uint64_t inode, uint64_t id);

/* Wait until no operation that the gate let through, and that may change a map of this file, is
 * still under way: 1, 0 after timeout_us, or -ENOENT. Conflicts with present guards are held, so
 * that after a 1 the map changes no more. */
int seal_gate_drain(struct seal_gate *gate, uint64_t device, uint64_t inode, uint32_t timeout_us);

/* As drain, for what the threads of `pid` may have begun before the file was watched. */
int seal_gate_drain_process(struct seal_gate *gate, int pid, uint32_t timeout_us);

/* Is the description of this process's own `fd` watched? Makes an access of no bytes with it and
 * looks whether the kernel asked. 1, 0 or -errno. The file must be watched. */
int seal_gate_sees(struct seal_gate *gate, int fd);

enum seal_report_kind {
	SEAL_REPORT_HELD,    /* waits in the kernel until it is answered or freed */
	SEAL_REPORT_REFUSED, /* was denied with `result` */
	SEAL_REPORT_ENDED,   /* a held one went on (result 0), was denied, or died (result EINTR) */
};

struct seal_report {
	uint64_t waiter; /* names a held operation; 0 for one refused at once */
	uint64_t device, inode;
	struct seal_operation operation;
	int32_t kind, tgid, result;
	uint32_t uid;
	uint64_t waited_us;
	char comm[16];
};

/* Take at most `max` reports; returns how many. */
size_t seal_gate_reports(struct seal_gate *gate, struct seal_report *out, size_t max);

/* Answer a held operation: errno 0 lets it go on, else EPERM, EIO, EAGAIN, EBUSY, ETXTBSY, ENOSPC or
 * EDQUOT is what its caller gets. 0, -ENOENT (it is gone) or -EINVAL. */
int seal_gate_answer(struct seal_gate *gate, uint64_t waiter, int error);

struct seal_gate_counters {
	uint64_t events, own, passed, held, refused, dropped_reports, failed_answers, files,
		waiters;
};
void seal_gate_count(struct seal_gate *gate, struct seal_gate_counters *out);

#endif

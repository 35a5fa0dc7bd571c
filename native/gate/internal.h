/* What the gate's files share. Everything below the lock is guarded by it. */
#ifndef SEALSVC_GATE_INTERNAL_H
#define SEALSVC_GATE_INTERNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "sealsvc/gate.h"
#include "sealsvc/operation.h"

/* Since v6.14 (include/uapi/linux/fanotify.h); older headers lack them. */
#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#define WATCH_MASK (FAN_PRE_ACCESS | FAN_OPEN_PERM)

#define BUCKETS 4096
/* What the epoll set of the minder says; waiters count from 1. */
#define EVENT_WAKE 0
#define EVENT_LATER UINT64_MAX
#define EVENT_TRIP (UINT64_MAX - 1)
#define TRIP_LOOKS 3   /* reports of one touched file: see trip.c */
#define ABSOLVED_MAX 8 /* registrations one operation can be proven to be free of */

/* An operation that waits for our answer. */
struct waiter {
	struct waiter *next, *next_fresh;
	uint64_t id, since_us;
	int event_fd, pidfd;
	int fresh;	/* the minder is still to find out who it is, and to tell of it */
	int reported;	/* a HELD report was made, so that its end is to be reported too */
	uint64_t asked; /* the registration of the last UNPROVEN report */
	uint64_t absolved[ABSOLVED_MAX];
	unsigned absolved_count;
	struct seal_event event;
	struct seal_syscall call; /* when it was looked at */
	struct seal_report report;
};

/* An operation that was let through and may still be changing the map. */
struct passage {
	struct seal_syscall call;
	int32_t tid;
};

/* What was let through on a file and may have changed its map: see trip.c. */
struct touch {
	struct file *next;
	struct seal_operation operation;
	uint64_t since_us;
	int is_listed, looks;
};

/* A watched file. `path_fd` (O_PATH) keeps its inode number from being used again, and its file
 * system from being unmounted, while it is watched. */
struct file {
	struct file *next;
	uint64_t device, inode, own_events;
	int path_fd;
	struct seal_traits traits;
	struct seal_guard *guards;
	struct waiter *waiters;
	struct passage *passages;
	struct touch touch;
	size_t guard_count, passage_count, passage_room;
};

struct seal_gate {
	int group, arming, epoll, wake;
	int later, trip; /* timers */
	int placeholder; /* O_PATH, on nothing that matters */
	int32_t tgid, exempt;
	int stopping;
	pthread_t reader, minder;
	struct seal_gate_outlet outlet;
	seal_gate_watch_judge *judge;
	void *judge_context;
	int prover; /* -1: none */

	/* Never held across a call that can touch a watched file. */
	pthread_mutex_t lock;
	struct file *files[BUCKETS];
	struct waiter *unseen; /* tasks not yet asleep: looked at again by the minder */
	struct waiter *fresh;  /* those of the files' waiters that are, in the order they came */
	int greets_later;      /* the timer runs */
	struct file *touched, *last_touched; /* a queue, by `touch.next` */
	size_t touched_count;
	int trip_runs; /* the timer */
	uint64_t next_waiter;
	struct seal_gate_counters counters;

	/* The reader thread's own, and the minder's. */
	struct seal_task_looker reader_looker, minder_looker;
	pthread_mutex_t passages_lock;
	struct seal_task_looker passages_looker;
};

/* What a look at a task showed: what it is about to do, and for a later comparison its registers. */
struct look {
	struct seal_operation operation;
	struct seal_syscall call;
	struct seal_stack stack;
};

/* look.c, without the lock. 0: the task is on its way to sleep, and is to be looked at once more. */
int gate_look(struct seal_task_looker *looker, const struct seal_event *event, struct look *out);
/* Of a task that could not be looked at: it is judged by the event alone. */
void gate_unseen(const struct seal_event *event, struct look *out);

/* files.c */
struct file *gate_find_file(struct seal_gate *gate, uint64_t device, uint64_t inode);
struct file *gate_add_file(struct seal_gate *gate, const struct stat *st);
void gate_remove_file(struct seal_gate *gate, struct file *file);
struct seal_guard *gate_find_guard(struct file *file, uint64_t id);

/* passages.c */
void gate_passage_begins(struct seal_gate *gate, struct file *file, int32_t tid,
			 const struct seal_syscall *call);
void gate_passages_end(struct file *file, int32_t tid);
void gate_prune_passages(struct seal_gate *gate, struct file *file);

/* trip.c */
/* `operation` is let through on `file`. */
void gate_touch(struct seal_gate *gate, struct file *file, const struct seal_operation *operation);
/* `file` is watched no more. */
void gate_untouch(struct seal_gate *gate, struct file *file);
/* The minder's part. The lock is let go of in between. */
void gate_report_touched(struct seal_gate *gate);

/* waiters.c */
/* Who the operation's task is. Without the lock: a look at a task may block. */
void gate_identify(struct seal_report *what);
uint64_t gate_now_us(void);
int gate_in_process(int32_t tgid, int32_t tid);
/* The strictest policy among the guards that an operation conflicts with (-1: it is free), the errno it
 * gets at once (0: it is to wait), and the registration whose proof is all that is missing (0: none). */
struct verdict {
	int policy, error;
	int is_told; /* all it waits for are seals in rings, whose clients were told in judging */
	uint64_t unproven;
};
/* `waiter` is NULL for an operation that is not held yet. */
struct verdict gate_judge(const struct seal_gate *gate, const struct file *file,
			  const struct seal_operation *operation, const struct waiter *waiter);
/* Of an operation that comes just now. The bells of holders are rung in here, and nothing is to come
 * between that and their waking up: what is to be told waits for a flush. */
struct verdict gate_judge_first(struct seal_gate *gate, const struct file *file,
				const struct seal_operation *operation);
void gate_respond(struct seal_gate *gate, int event_fd, int error);
void gate_pass(struct seal_gate *gate, int event_fd);
struct waiter *gate_new_waiter(struct seal_gate *gate, const struct seal_event *event, int event_fd,
			       const struct file *file);
void gate_hold(struct seal_gate *gate, struct file *file, struct waiter *waiter,
	       const struct look *look);
/* The same of one that waits for nobody who is not told. Who it is, and what the service is to hear of
 * it, is left to the minder. */
void gate_hold_fresh(struct seal_gate *gate, struct file *file, struct waiter *waiter,
		     const struct look *look);
/* The minder's part of it, for one of them. 0 when there was none. The lock is let go of in between. */
int gate_greet(struct seal_gate *gate);
void gate_finish(struct seal_gate *gate, struct waiter *waiter, int error);
void gate_settle_all(struct seal_gate *gate, struct file *file);
/* A guard that was being armed belongs to a seal now: whoever waits for another one already, and was
 * reported before this one could be recalled, is reported once more. */
void gate_announce_again(struct seal_gate *gate, struct file *file, const struct seal_guard *guard);
struct waiter *gate_find_waiter(struct seal_gate *gate, uint64_t id, struct file **file);
/* Take the waiter out of its file's list; NULL when there is none. The caller finishes it. */
struct waiter *gate_take_waiter(struct seal_gate *gate, uint64_t id);

/* reader.c and minder.c: the two threads */
void *gate_reader_main(void *gate);
void *gate_minder_main(void *gate);

#endif

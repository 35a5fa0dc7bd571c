/* What the gate's files share. Everything below the lock is guarded by it. */
#ifndef SEALSVC_GATE_INTERNAL_H
#define SEALSVC_GATE_INTERNAL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/list.h"
#include "guards.h"
#include "sealsvc/gate.h"
#include "sealsvc/operation.h"

/* Since v6.14 (include/uapi/linux/fanotify.h); older headers lack them. */
#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000
#endif
#define WATCH_MASK (FAN_PRE_ACCESS | FAN_OPEN_PERM)

#define BUCKETS 4096
/* What the epoll set of the minder says; the numbers of processes have a process id in their upper half. */
#define EVENT_WAKE 0
#define EVENT_LATER UINT64_MAX
#define EVENT_TICK (UINT64_MAX - 1)
#define EVENT_TRIP (UINT64_MAX - 2)
#define TRIP_LOOKS 3   /* reports of one touched file: see trip.c */
#define ABSOLVED_MAX 8 /* registrations one operation can be proven to be free of */

/* Limits: docs/rules.md. What is over one gets EAGAIN. They are high, since to hold one more costs less
 * than to refuse it while others wait: each answer wakes every task that waits for one of the same
 * fanotify group (access_waitq). */
#define WAITERS_OF_FILE 8192
#define WAITERS_OF_USER 8192 /* but for root */
#define WAITERS_IN_ALL 16384
#define DESCRIPTORS_FREE 128 /* for events: the kernel denies one it has no descriptor for */
#define PASSAGES_OF_FILE 4096

#define LOOK_STUCK_US 50000   /* then another thread takes the place of the one that looks */
#define LOOK_LIMIT_US 2000000 /* then an operation is judged without having been seen */
#define TICK_NS 25000000
#define LOST_MAX 32 /* threads of one kind that are stuck in a look; no more looks then */
#define BATCH 64    /* waiters that are judged while the lock is held */
#define PROCESSES 1024
/* All files begin in the first group; one with a crowd gets into another, which is opened then and has a
 * reader of its own, so that its waiters are not woken by everybody's answers, nor make these wait.
 * (Groups are few: fs.fanotify.max_user_groups.) */
#define SHARDS 16
#define CROWD 16	  /* waiters of a file, after which it leaves the first group */
#define SHARD_FULL 256	  /* waiters of another group, after which a file leaves that one */
#define ANSWERS_AT_ONCE 8 /* by a thread that has other things to do */
#define HIGH 4096	  /* the lowest descriptor of a group, where there may be twice as many */

struct user;
struct process;
struct seat;

enum waiter_state {
	WAITER_NEW,	 /* in no list */
	WAITER_UNSEEN,	 /* in the gate's list: the looker is to find out what it does */
	WAITER_HELD,	 /* in its file's list */
	WAITER_RELEASED, /* in the gate's list: its file is watched no more, and it goes on */
	WAITER_ANSWERED, /* in the gate's list: it has ended, and is still to be told so */
};

/* An operation that waits for our answer. */
struct waiter {
	struct list place; /* in the list that `state` names */
	struct list place_fresh, place_of_process;
	struct waiter *next_by_id;
	struct file *file; /* of one that is HELD */
	enum waiter_state state;
	uint64_t id, since_us, judged; /* the file's `changes` when it was judged last */
	int event_fd;
	struct process *process; /* whose end is watched for; NULL: unknown */
	struct user *user;	 /* whom it counts for; NULL: nobody */
	int fresh;		 /* the minder is still to find out who it is, and to tell of it */
	int reported;		 /* a HELD report was made, so that its end is to be reported too */
	int looked_at;		 /* a thread looks at it, without the lock */
	int shard, answer;	 /* who asked; what it is to be told */
	uint64_t round;		 /* of the looker, in which it was looked at last */
	uint64_t asked;		 /* the registration of the last UNPROVEN report */
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
	int stuck; /* a look at its task did not come back */
};

/* What was let through on a file and may have changed its map: see trip.c. */
struct touch {
	struct file *next;
	struct seal_operation operation;
	uint64_t since_us;
	int is_listed, looks;
};

/* A watched file. `path_fd` (O_PATH, or access mode 3) keeps its inode number from being used again, and its file
 * system from being unmounted, while it is watched. */
struct file {
	struct file *next, *next_unsettled, *next_pruned;
	uint64_t device, inode, own_events;
	uint64_t changes; /* of its guards */
	int path_fd, shard;
	int unsettled, pruned; /* is in the gate's list of these */
	struct seal_traits traits;
	struct guards guards;
	struct list
		waiters; /* those that are still to be judged by the guards as they are now come first */
	struct {
		struct passage *at;
		size_t count, room;
	} passages;
	struct touch touch;
	size_t waiter_count, prune_at;
};

struct seal_gate {
	int groups[SHARDS];	  /* -1: not open */
	unsigned waiting[SHARDS]; /* how many wait for an answer of each */
	int arming, epoll, wake;
	int later, ticks, trip; /* timers */
	int placeholder;	/* O_PATH, on nothing that matters */
	int descriptors;	/* the highest that a waiter may take */
	int32_t tgid, exempt;
	int stopping;
	pthread_t minder;
	void *(*seat_main[2])(
		void *seat); /* the threads, by enum seat_kind: they use what gives them a seat */
	struct seal_gate_outlet outlet;
	seal_gate_watch_judge *judge;
	void *judge_context;
	int prover; /* -1: none */

	/* Never held across a call that can touch a watched file, a look at a task, or an answer, which
	 * takes milliseconds where thousands wait. Lock order: the canary's lock, this one (which is that of
	 * the rings too), the outbox's lock. What is called with it held, the outlet and the judge of watches,
	 * takes none of those before it. */
	pthread_mutex_t lock;
	pthread_cond_t work; /* for the looker */
	struct seat *readers[SHARDS], *looker;
	unsigned lost[2];   /* threads, by kind */
	int ticking;	    /* the minder looks after the two threads */
	uint64_t seen_tick; /* events, at the last tick */
	struct file *files[BUCKETS];
	struct file
		*unsettled;  /* not all of their waiters were judged since their guards changed */
	struct file *pruned; /* somebody asks what is under way there */
	struct waiter *by_id[BUCKETS];
	struct list unseen, released, answers; /* by enum waiter_state */
	struct list fresh; /* those of the files' waiters that are, in the order they came */
	struct process *processes[PROCESSES];
	struct user *users[PROCESSES];
	int greets_later;		     /* the timer runs */
	struct file *touched, *last_touched; /* a queue, by `touch.next` */
	size_t touched_count;
	int trip_runs; /* the timer */
	uint64_t next_waiter, look_round, crowd_told_us;
	uint32_t next_process;
	struct seal_gate_counters counters;
};

/* What a look at a task showed: what it is about to do, and for a later comparison its registers. */
struct look {
	struct seal_operation operation;
	struct seal_syscall call;
	struct seal_stack stack;
};

/* A thread that looks at tasks, and may be lost in one: the minder gives its place to another. */
enum seat_kind { SEAT_READER, SEAT_LOOKER };
struct seat {
	struct seal_gate *gate;
	enum seat_kind kind;
	int shard; /* the reader's */
	pthread_t thread;
	uint64_t look_since_us; /* 0: it looks at nobody. Set without the lock */
	int lost;		/* it has no place any more, and ends when it comes back */
	uint64_t waiter; /* what it looks at; 0: an event that is no waiter yet, or a passage */
	struct seal_task_looker looker;
	/* The reader's: the event it is at, and those behind it. */
	const struct fanotify_event_metadata *at;
	ssize_t left;
	char buffer[16384] __attribute__((aligned(8)));
	/* The looker's: the passage it looks at. */
	uint64_t device, inode;
	int32_t tid;
};

/* look.c, without the lock. 0: the task is on its way to sleep, and is to be looked at once more. */
int gate_look(struct seal_task_looker *looker, const struct seal_event *event, struct look *out);
/* Of a task that could not be looked at: it is judged by the event alone. */
void gate_unseen(const struct seal_event *event, struct look *out);

/* tasks.c */
uint64_t gate_now_us(void); /* CLOCK_MONOTONIC */
int gate_in_process(int32_t tgid, int32_t tid);
/* Fills in the process, the user and the name of what->operation.tid; a task that is gone leaves all as it was. */
void gate_identify(struct seal_report *what);

/* seats.c. With the lock. */
/* 0 or -errno. */
int gate_take_seat(struct seal_gate *gate, enum seat_kind kind, int shard);
/* Have the minder look after the threads for a while. */
void gate_start_ticks(struct seal_gate *gate);
/* Around a look, the first without the lock. 0: the place was lost; the caller lets go of the lock, and
 * ends by gate_leave_seat. */
void gate_look_begins(struct seat *seat, uint64_t waiter);
int gate_look_ended(struct seat *seat);
void gate_leave_seat(struct seat *seat);

/* files.c */
struct file *gate_find_file(struct seal_gate *gate, uint64_t device, uint64_t inode);
struct file *gate_add_file(struct seal_gate *gate, const struct stat *st);
/* It is in no list any more but the table. */
void gate_free_file(struct seal_gate *gate, struct file *file);
/* groups.c */
/* 0 or -errno. */
int gate_open_group(struct seal_gate *gate, int shard);
/* What is held goes on. */
void gate_close_groups(struct seal_gate *gate);
/* `action` is FAN_MARK_ADD or FAN_MARK_REMOVE. 0 or -errno. */
int gate_mark_file(struct seal_gate *gate, int shard, unsigned int action, const struct file *file);
/* With the lock: have another group watch a file with a crowd. */
void gate_move_crowd(struct seal_gate *gate, struct file *file);

/* trip.c */
/* `operation` is let through on `file`. */
void gate_touch(struct seal_gate *gate, struct file *file, const struct seal_operation *operation);
/* `file` is watched no more. */
void gate_untouch(struct seal_gate *gate, struct file *file);
/* The minder's part. The lock is let go of in between. */
void gate_report_touched(struct seal_gate *gate);

/* passages.c */
/* 0, or -EAGAIN: there are too many to remember one more. */
int gate_passage_begins(struct seal_gate *gate, struct file *file, int32_t tid,
			const struct seal_syscall *call);
void gate_passages_end(struct file *file, int32_t tid);
/* Have the looker find out which of them have ended. */
void gate_prune_passages(struct seal_gate *gate, struct file *file);
void gate_forget_pruned(struct seal_gate *gate, struct file *file);
/* The looker's part: one look. 0: the place was lost. */
int gate_prune_one(struct seat *seat);

/* crowd.c: who waits, and how many may */
/* 0, or -EAGAIN: too many wait, for this file or in all. */
int gate_has_room(const struct seal_gate *gate, const struct file *file, int event_fd);
/* The waiter's report tells who it is. 0, -EAGAIN: too many wait for this user, or -ESRCH. */
int gate_enrol(struct seal_gate *gate, struct waiter *waiter);
void gate_strike_off(struct seal_gate *gate, struct waiter *waiter);
/* One that is held, of the process that the epoll set calls by this number; NULL: there is none. */
struct waiter *gate_waiter_of_process(struct seal_gate *gate, uint64_t number);

/* judge.c */
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

/* answers.c. Without the lock, but where noted. */
void gate_respond(struct seal_gate *gate, int shard, int event_fd, int error);
void gate_pass(struct seal_gate *gate, int shard, int event_fd);
/* Let go of the lock, and tell a few of those who are to be told; the minder tells the others. */
void gate_unlock(struct seal_gate *gate);
/* With the lock, which is let go of meanwhile. 0: all have been told. */
int gate_answer_some(struct seal_gate *gate);

/* waiters.c */
/* `shard` is the group that asks: the file may have gone to another one since. NULL: no memory. */
struct waiter *gate_new_waiter(struct seal_gate *gate, const struct file *file, int shard,
			       const struct seal_event *event, int event_fd);
/* Put it behind the last of this list, which is that of `state`, and out of where it was. */
void gate_list_waiter(struct waiter *waiter, enum waiter_state state, struct list *list);
void gate_unlist_waiter(struct waiter *waiter);
/* It is in no table any more, and counts for nobody. */
void gate_forget_waiter(struct seal_gate *gate, struct waiter *waiter);
/* The one with this id, if it is in this state; or NULL. */
struct waiter *gate_find_waiter(struct seal_gate *gate, uint64_t id, enum waiter_state state);

/* reports.c */
/* A thread of the kernel's NFS server. */
int gate_is_server(const struct seal_report *who);
/* It is held: told once. */
void gate_announce(struct seal_gate *gate, struct waiter *waiter);
/* Report what may have been reported before: the outbox knows it by `waited_us`. */
void gate_tell_again(struct seal_gate *gate, struct waiter *waiter, int kind);
/* A guard that was being armed belongs to a seal now: whoever waits for another one already, and was
 * reported before this one could be recalled, is reported once more. */
void gate_announce_again(struct seal_gate *gate, struct file *file, const struct seal_guard *guard);
void gate_ask_for_proof(struct seal_gate *gate, struct waiter *waiter, uint64_t unproven);
/* End a waiter: report its end when its beginning was, and have it answered. */
void gate_finish(struct seal_gate *gate, struct waiter *waiter, int error);

/* settle.c */
/* Judge one anew. 1: it has ended. */
int gate_settle(struct seal_gate *gate, struct file *file, struct waiter *waiter);
/* The guards of the file have changed: judge its waiters anew, a batch now, the rest by the minder. */
void gate_settle_all(struct seal_gate *gate, struct file *file);
/* The minder's part: one batch. 0: nothing is left to do. */
int gate_settle_some(struct seal_gate *gate);
/* Nothing is guarded there any more. */
void gate_release_waiters(struct seal_gate *gate, struct file *file);

/* hold.c */
void gate_hold(struct seal_gate *gate, struct file *file, struct waiter *waiter,
	       const struct look *look);
/* The same of one that waits for nobody who is not told. Who it is, and what the service is to hear of
 * it, is left to the minder. */
void gate_hold_fresh(struct seal_gate *gate, struct file *file, struct waiter *waiter,
		     const struct look *look);
/* The minder's part of it, for one of them. 0 when there was none. The lock is let go of in between. */
int gate_greet(struct seal_gate *gate);

/* ticks.c. The minder's part, each time the timer of gate_start_ticks runs out. */
void gate_tick(struct seal_gate *gate);

/* reader.c, looker.c and minder.c: the threads */
void *gate_reader_main(void *seat);
/* The reader is stuck in a look: what it has read goes to the looker, but for that one, which is judged
 * when the look ends, or after a time. */
void gate_reader_lost(struct seal_gate *gate, struct seat *seat);
void *gate_looker_main(void *seat);
/* What is known of the waiter now is all there will ever be: judge it. */
void gate_judge_late(struct seal_gate *gate, struct waiter *waiter, const struct look *look);
/* Those that were looked at for too long are judged unseen. */
void gate_give_up_looks(struct seal_gate *gate);
void *gate_minder_main(void *gate);

#endif

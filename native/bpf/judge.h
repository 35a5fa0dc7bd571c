/* What conflicts with a seal: the rule book (sealsvc/rules.h), for operations whose kind is always
 * known. */
#ifndef SEAL_JUDGE_H
#define SEAL_JUDGE_H

/* From libbpf 1.5 on the next takes __u64 and its like from whoever includes it. */
#include <linux/types.h>

#include <bpf/bpf_core_read.h>

#include "kernel_types.h"
#include "maps.h"
#include "sealsvc/verdict.h"

#define EBADF 9
#define EFAULT 14
#define EBUSY 16
#define ETXTBSY 26
#define CLOCK_TICK_NS 10000000 /* USER_HZ is 100 on every architecture with BPF LSM */

#define FMODE_NONOTIFY (1u << 25)
#define FMODE_NONOTIFY_PERM (1u << 26)

/* Bytes; length 0 means to the end. `seen`: fanotify has seen it, or will. */
struct attempt {
	struct seal_bpf_file file;
	uint64_t offset, length, argument;
	uint32_t generation;
	uint32_t op; /* enum seal_op */
	uint32_t seen;
	uint32_t unused;
};

static __always_inline void attempt_on_inode(struct attempt *a, struct inode *inode)
{
	a->file.device = inode->i_sb->s_dev;
	a->file.inode = inode->i_ino;
	a->generation = inode->i_generation;
	a->seen = 0;
	a->unused = 0;
}

/* Pre-content events are on when both bits are clear, or both set (include/linux/fs.h, v6.14). */
static __always_inline void attempt_on_file(struct attempt *a, struct file *file)
{
	uint32_t quiet = file->f_mode & (FMODE_NONOTIFY | FMODE_NONOTIFY_PERM);

	attempt_on_inode(a, file->f_inode);
	a->seen = quiet == 0 || quiet == (FMODE_NONOTIFY | FMODE_NONOTIFY_PERM);
}

/* One operation, as each range is asked about it. */
struct question {
	const struct seal_bpf_entry *entry;
	struct seal_bpf_event *event;
	uint64_t start, end;
	int32_t tgid;
	uint32_t open, seen; /* it is an open; fanotify has seen it, or will */
	uint32_t truncates;
	int32_t error; /* the answer */
};

/* The bytes that the operation reaches, by the rule book. 0: none of a sealed range. */
static __always_inline int reached(const struct attempt *a, uint32_t reflink, uint64_t *start,
				   uint64_t *end)
{
	*start = a->offset;
	*end = a->length == 0 || a->offset + a->length < a->offset ? UINT64_MAX
								   : a->offset + a->length;
	switch (seal_reach(a->op, reflink ? SEAL_TRAIT_REFLINK : 0)) {
	case SEAL_REACH_NONE:
		return 0;
	case SEAL_REACH_TO_END:
		*end = UINT64_MAX;
		return 1;
	case SEAL_REACH_WHOLE:
		*start = 0;
		*end = UINT64_MAX;
	}
	return 1;
}

static __always_inline int conflicts(const struct question *q, const struct seal_bpf_range *r)
{
	if (q->open)
		return r->exclusive && !(r->holder && r->holder == q->tgid);
	return q->start < r->end && r->start < q->end;
}

/* A lease makes opens wait; what an open descriptor does it cannot see. */
static __always_inline int left_to_front(const struct question *q, const struct seal_bpf_range *r)
{
	switch (r->front) {
	case SEAL_BPF_BEHIND_FANOTIFY:
		return q->seen;
	case SEAL_BPF_BEHIND_LEASE:
		return q->open;
	case SEAL_BPF_BEHIND_WATCH:
		return q->seen || q->truncates;
	}
	return 0;
}

/* A seal that is being made refuses without a word. */
static long ask_range(uint32_t i, struct question *q)
{
	const struct seal_bpf_range *r;
	uint32_t at = q->event->token_count;

	if (i >= SEAL_BPF_RANGES)
		return 1;
	r = &q->entry->ranges[i];
	if (!conflicts(q, r) || left_to_front(q, r))
		return 0;
	q->error = seal_prevailing_errno(q->error, r->policy == SEAL_POLICY_BUSY ? EBUSY : ETXTBSY);
	if (r->policy == SEAL_POLICY_ARMING)
		return 0;
	if (at < SEAL_BPF_TOKENS)
		q->event->tokens[at] = r->token;
	q->event->token_count = at + 1;
	return 0;
}

/* The errno, or 0. Collects the tokens of the seals that the attempt meets. */
static __always_inline int ask(const struct seal_bpf_entry *entry, const struct attempt *a,
			       struct seal_bpf_event *event, int32_t tgid)
{
	struct question q = {
		.entry = entry,
		.event = event,
		.tgid = tgid,
		.open = a->op == SEAL_OP_OPEN || a->op == SEAL_OP_EXEC,
		.seen = a->seen,
		.truncates = a->op == SEAL_OP_TRUNCATE,
	};

	event->token_count = 0;
	if (q.open || reached(a, entry->reflink, &q.start, &q.end))
		bpf_loop(entry->count, ask_range, &q, 0);
	return q.error;
}

/* The service prepares and proves what it is about to seal. */
static __always_inline int by_service(struct task_struct *task, struct seal_bpf_control *c)
{
	return c->service && task->tgid == c->service &&
	       task->group_leader->start_boottime / CLOCK_TICK_NS == c->service_start;
}

static __always_inline void tell(const struct attempt *a, struct seal_bpf_event *event,
				 struct seal_bpf_control *c, int error)
{
	uint64_t task = bpf_get_current_pid_tgid();

	event->time = bpf_ktime_get_ns();
	event->device = a->file.device;
	event->inode = a->file.inode;
	event->offset = a->offset;
	event->length = a->length;
	event->argument = a->argument;
	event->op = a->op;
	event->error = error;
	event->tgid = task >> 32;
	event->tid = (uint32_t)task;
	event->uid = (uint32_t)bpf_get_current_uid_gid();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (bpf_ringbuf_output(&seal_events, event, sizeof(*event), 0))
		__sync_fetch_and_add(&c->lost_events, 1);
}

/* 0 or the errno. A global function, so that the verifier looks at it once and not at each call. */
__noinline int judge(const struct attempt *attempt)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct seal_bpf_event event = {};
	struct seal_bpf_control *c = control();
	struct seal_bpf_file key;
	int error = ETXTBSY;

	if (!attempt || !c || !c->entries)
		return 0;
	key = attempt->file; /* on our stack: 6.1 takes no key from the caller's */
	/* An entry that is replaced meanwhile is read again; one that never holds still fails closed. */
	for (int i = 0; i < 3; i++) {
		struct seal_bpf_entry *entry, *again;
		uint64_t version;

		entry = bpf_map_lookup_elem(&seal_files, &key);
		if (!entry)
			return 0;
		version = entry->version;
		if (entry->generation && entry->generation != attempt->generation)
			error = 0; /* another file got the inode's number */
		else
			error = ask(entry, attempt, &event, task->tgid);
		again = bpf_map_lookup_elem(&seal_files, &key);
		if (again == entry && again->version == version)
			break;
		error = ETXTBSY;
	}
	if (!error || by_service(task, c))
		return 0;
	if (event.token_count)
		tell(attempt, &event, c, error);
	return error;
}

/* What a hook answers. Constants: since v6.12 the verifier wants to see that it is an errno. */
static __always_inline int refusal(int64_t error)
{
	switch (error) {
	case 0:
		return 0;
	case EBUSY:
		return -EBUSY;
	case EFAULT:
		return -EFAULT;
	}
	return -ETXTBSY;
}

#endif

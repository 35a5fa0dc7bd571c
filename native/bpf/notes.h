/* Between the begin and the end of an operation: that it is under way, and that it will be refused. */
#ifndef SEAL_NOTES_H
#define SEAL_NOTES_H

#include "judge.h"
#include "numbers.h"

/* We note that we are there before we look for seals; whoever makes one does it the other way round.
 * On x86 any locked instruction keeps the two in order. */
static __always_inline void fence(struct seal_bpf_control *c)
{
	__sync_fetch_and_add(&c->untracked, 0);
}

/* Operations under way: a seal that is being made waits for those that passed before it was there. */

/* `expected`: the permissions that it will ask for on this file, each once. */
static __always_inline void enter(const struct seal_bpf_file *file, uint64_t expected)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), *file};
	struct seal_bpf_since value = {bpf_ktime_get_ns(), file->device, seal_set.id, expected};
	struct seal_bpf_control *c = control();

	if (!c)
		return;
	if (bpf_map_update_elem(&seal_underway, &key, &value, BPF_ANY))
		__sync_fetch_and_add(&c->untracked, 1);
	fence(c);
}

static __always_inline void drop_note(void)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();

	if (c && c->notes && !bpf_map_delete_elem(&seal_notes, &task))
		__sync_fetch_and_add(&c->notes, -1);
}

/* Under this thread's number alone, for what does not know its file when it ends. `kind` keeps apart
 * what may be in another: a look at one file of a remapping is in an ioctl. */
enum loose { LOOSE_IOCTL, LOOSE_WRITE, LOOSE_REMAP };

static __always_inline void leave_loose(enum loose kind)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), {0, kind}};
	struct seal_bpf_control *c = control();

	if (c && c->loose && !bpf_map_delete_elem(&seal_underway, &key))
		__sync_fetch_and_add(&c->loose, -1);
}

static __always_inline void enter_loose(struct file *file, enum loose kind, uint64_t expected)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), {0, kind}};
	struct seal_bpf_since value = {bpf_ktime_get_ns(), file->f_inode->i_sb->s_dev, seal_set.id,
				       expected};
	struct seal_bpf_control *c = control();

	if (!c)
		return;
	__sync_fetch_and_add(&c->loose, 1);
	if (!bpf_map_update_elem(&seal_underway, &key, &value, BPF_NOEXIST))
		return;
	leave_loose(kind); /* one whose end was skipped */
	if (!bpf_map_update_elem(&seal_underway, &key, &value, BPF_NOEXIST))
		return;
	__sync_fetch_and_add(&c->loose, -1);
	__sync_fetch_and_add(&c->untracked, 1);
}

static __always_inline void leave(struct file *file)
{
	struct seal_bpf_underway key = {bpf_get_current_pid_tgid(), {0, 0}};

	key.file.device = file->f_inode->i_sb->s_dev;
	key.file.inode = file->f_inode->i_ino;
	bpf_map_delete_elem(&seal_underway, &key);
	drop_note();
}

/* Notes */

#define BLIND_NS 1000000000ull

static __always_inline int is_sealed(struct file *file)
{
	struct seal_bpf_file key = {file->f_inode->i_sb->s_dev, file->f_inode->i_ino};

	return !!bpf_map_lookup_elem(&seal_files, &key);
}

static __always_inline int noted(void)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();

	return c && c->notes && bpf_map_lookup_elem(&seal_notes, &task);
}

/* `asked`: the file for which permission will be asked. */
static __always_inline void note_for(const struct attempt *a, const struct seal_bpf_file *asked)
{
	uint64_t task = bpf_get_current_pid_tgid();
	struct seal_bpf_control *c = control();
	struct note value = {*asked, judge(a)};

	if (!value.error || !c)
		return;
	/* Counted before it is there: file_permission must not overlook it. */
	__sync_fetch_and_add(&c->notes, 1);
	if (!bpf_map_update_elem(&seal_notes, &task, &value, BPF_NOEXIST))
		return;
	drop_note(); /* of an operation whose end was skipped */
	if (!bpf_map_update_elem(&seal_notes, &task, &value, BPF_NOEXIST))
		return;
	__sync_fetch_and_add(&c->notes, -1);
	/* Full, out of memory, or its lock was not to be had: nobody may pass for a while. */
	c->blind_until = bpf_ktime_get_ns() + BLIND_NS;
}

/* The error that this task's note has for the file. Who was refused once does not ask again. */
static __always_inline int64_t read_note(struct file *file, int mask, struct seal_bpf_control *c)
{
	uint64_t task = bpf_get_current_pid_tgid();
	int64_t error;
	struct note *n;

	if (mask & MAY_WRITE && bpf_ktime_get_ns() < c->blind_until && is_sealed(file))
		return ETXTBSY;
	n = bpf_map_lookup_elem(&seal_notes, &task);
	if (!n || n->file.inode != file->f_inode->i_ino ||
	    n->file.device != file->f_inode->i_sb->s_dev)
		return 0;
	error = n->error;
	drop_note();
	return error;
}

static __always_inline void note(const struct attempt *a)
{
	note_for(a, &a->file);
}

#endif

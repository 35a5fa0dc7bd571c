/* Guards of files: each change judges what is held there anew. */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

int seal_gate_guard(struct seal_gate *gate, uint64_t device, uint64_t inode,
		    const struct seal_guard *guard)
{
	struct seal_guard *there, *grown;
	struct file *file;
	int error = 0, was_arming = 0;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (!file) {
		error = -ENOENT;
	} else if ((there = gate_find_guard(file, guard->id))) {
		was_arming = there->policy == SEAL_POLICY_ARMING;
		*there = *guard;
	} else if ((grown = realloc(file->guards, (file->guard_count + 1) * sizeof(*grown)))) {
		file->guards = grown;
		file->guards[file->guard_count++] = *guard;
	} else {
		error = -ENOMEM;
	}
	if (!error)
		gate_settle_all(gate, file);
	if (was_arming && guard->policy == SEAL_POLICY_WAIT)
		gate_announce_again(gate, file, guard);
	gate_unlock(gate);
	return error;
}

int seal_gate_unguard(struct seal_gate *gate, uint64_t device, uint64_t inode, uint64_t id)
{
	struct seal_guard *guard = NULL;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		guard = gate_find_guard(file, id);
	if (guard) {
		*guard = file->guards[--file->guard_count];
		gate_settle_all(gate, file);
	}
	gate_unlock(gate);
	return guard ? 0 : -ENOENT;
}

int64_t seal_gate_passages(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	int64_t left = -ENOENT;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file) {
		left = (int64_t)file->passage_count;
		gate_prune_passages(gate, file);
	}
	pthread_mutex_unlock(&gate->lock);
	return left;
}

int64_t seal_gate_own_events(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	int64_t count = -ENOENT;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		count = (int64_t)file->own_events;
	pthread_mutex_unlock(&gate->lock);
	return count;
}

int seal_gate_settle(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		gate_settle_all(gate, file);
	gate_unlock(gate);
	return file ? 0 : -ENOENT;
}

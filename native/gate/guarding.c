/* Guards of files: each change judges what is held there anew. */
#include <errno.h>

#include "internal.h"

int seal_gate_guard(struct seal_gate *gate, uint64_t device, uint64_t inode,
		    const struct seal_guard *guard)
{
	struct seal_guard replaced;
	struct file *file;
	int done = -ENOENT;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		done = guards_put(&file->guards, guard, &replaced);
	if (done >= 0)
		gate_settle_all(gate, file);
	if (done == 1 && replaced.policy == SEAL_POLICY_ARMING && guard->policy == SEAL_POLICY_WAIT)
		gate_announce_again(gate, file, guard);
	gate_unlock(gate);
	return done < 0 ? done : 0;
}

int seal_gate_unguard(struct seal_gate *gate, uint64_t device, uint64_t inode, uint64_t id)
{
	struct file *file;
	int error = -ENOENT;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file)
		error = guards_take(&file->guards, id);
	if (!error)
		gate_settle_all(gate, file);
	gate_unlock(gate);
	return error;
}

int64_t seal_gate_passages(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	int64_t left = -ENOENT;
	struct file *file;

	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, device, inode);
	if (file) {
		left = (int64_t)file->passages.count;
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

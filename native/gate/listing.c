/* What is watched, guarded and held, as a whole. */
#include "internal.h"

void seal_gate_replay(struct seal_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			LIST_EACH(waiter, &file->waiters, struct waiter, place)
	if (waiter->reported || waiter->asked)
		gate_tell_again(gate, waiter, waiter->report.kind);
	pthread_mutex_unlock(&gate->lock);
}

size_t seal_gate_files(struct seal_gate *gate, struct seal_gate_file *out, size_t max)
{
	size_t count = 0;

	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next, count++)
			if (count < max)
				out[count] = (struct seal_gate_file){
					.device = file->device,
					.inode = file->inode,
					.traits = file->traits,
					.fd = file->path_fd,
					.guards = (uint32_t)file->guards.count,
				};
	pthread_mutex_unlock(&gate->lock);
	return count;
}

size_t seal_gate_guards(struct seal_gate *gate, struct seal_gate_guard *out, size_t max)
{
	size_t count = 0;

	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct file *file = gate->files[i]; file; file = file->next)
			for (const struct guard *at = NULL; (at = guards_list(&file->guards, at));
			     count++)
				if (count < max)
					out[count] = (struct seal_gate_guard){file->device,
									      file->inode, at->is};
	pthread_mutex_unlock(&gate->lock);
	return count;
}

void seal_gate_count(struct seal_gate *gate, struct seal_gate_counters *out)
{
	pthread_mutex_lock(&gate->lock);
	*out = gate->counters;
	pthread_mutex_unlock(&gate->lock);
}

/* What was let through and may still be under way. */
#include <stdlib.h>

#include "internal.h"
#include "sealsvc/inflight.h"

/* Forget those that have ended. */
void gate_prune_passages(struct seal_gate *gate, struct file *file)
{
	pthread_mutex_lock(&gate->passages_lock);
	for (size_t i = 0; i < file->passage_count;) {
		struct seal_syscall now;

		seal_syscall_read(&gate->passages_looker, file->passages[i].tid, &now);
		if (seal_call_ended(file->passages[i].tid, &file->passages[i].call, &now))
			file->passages[i] = file->passages[--file->passage_count];
		else
			i++;
	}
	pthread_mutex_unlock(&gate->passages_lock);
}

void gate_passage_begins(struct seal_gate *gate, struct file *file, int32_t tid,
			 const struct seal_syscall *call)
{
	if (file->passage_count == file->passage_room)
		gate_prune_passages(gate, file);
	if (file->passage_count == file->passage_room) {
		size_t room = file->passage_room ? file->passage_room * 2 : 8;
		struct passage *grown = realloc(file->passages, room * sizeof(*grown));

		if (!grown)
			return; /* no memory: drain() then misses one; nothing better can be done */
		file->passages = grown;
		file->passage_room = room;
	}
	file->passages[file->passage_count++] = (struct passage){*call, tid};
}

/* A task that asks again has finished what it asked for before. */
void gate_passages_end(struct file *file, int32_t tid)
{
	for (size_t i = 0; i < file->passage_count;)
		if (file->passages[i].tid == tid)
			file->passages[i] = file->passages[--file->passage_count];
		else
			i++;
}

/* What was let through and may still be under way. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/vector.h"
#include "internal.h"
#include "sealsvc/inflight.h"

int gate_passage_begins(struct seal_gate *gate, struct file *file, int32_t tid,
			const struct seal_syscall *call)
{
	struct passage *next = NULL;

	if (file->passages.count < PASSAGES_OF_FILE)
		next = VECTOR_ADD(&file->passages, 8);
	if (!next) {
		gate_prune_passages(gate, file);
		return -EAGAIN;
	}
	*next = (struct passage){.call = *call, .tid = tid};
	return 0;
}

/* A task that asks again has finished what it asked for before. */
void gate_passages_end(struct file *file, int32_t tid)
{
	for (size_t i = 0; i < file->passages.count;)
		if (file->passages.at[i].tid == tid)
			file->passages.at[i] = file->passages.at[--file->passages.count];
		else
			i++;
}

void gate_prune_passages(struct seal_gate *gate, struct file *file)
{
	if (file->pruned || !file->passages.count)
		return;
	file->prune_at = 0;
	file->pruned = 1;
	file->next_pruned = gate->pruned;
	gate->pruned = file;
	pthread_cond_signal(&gate->work);
}

void gate_forget_pruned(struct seal_gate *gate, struct file *file)
{
	struct file **at = &gate->pruned;

	while (*at && *at != file)
		at = &(*at)->next_pruned;
	if (*at)
		*at = file->next_pruned;
	file->pruned = 0;
}

static struct passage *find(struct file *file, int32_t tid)
{
	for (size_t i = 0; file && i < file->passages.count; i++)
		if (file->passages.at[i].tid == tid)
			return &file->passages.at[i];
	return NULL;
}

int gate_prune_one(struct seat *seat)
{
	struct seal_gate *gate = seat->gate;
	struct file *file = gate->pruned;
	struct passage was, *passage;
	struct seal_syscall now;
	int ended;

	while (file->prune_at < file->passages.count && file->passages.at[file->prune_at].stuck)
		file->prune_at++;
	if (file->prune_at >= file->passages.count) {
		gate_forget_pruned(gate, file);
		return 1;
	}
	passage = &file->passages.at[file->prune_at++];
	was = *passage;
	passage->stuck = 1; /* until we come back */
	seat->device = file->device;
	seat->inode = file->inode;
	seat->tid = was.tid;
	gate_look_begins(seat, 0);
	pthread_mutex_unlock(&gate->lock);
	seal_syscall_read(&seat->looker, was.tid, &now);
	ended = seal_call_ended(was.tid, &was.call, &now);
	pthread_mutex_lock(&gate->lock);
	file = gate_find_file(gate, seat->device, seat->inode);
	passage = find(file, was.tid);
	if (passage && memcmp(&passage->call, &was.call, sizeof(was.call)) == 0) {
		passage->stuck = 0;
		if (ended) {
			*passage = file->passages.at[--file->passages.count];
			if (file->prune_at)
				file->prune_at--;
		}
	}
	return gate_look_ended(seat);
}

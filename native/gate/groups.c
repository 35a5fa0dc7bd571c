/* The fanotify groups: all files begin in the first, and one with a crowd gets into another. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "internal.h"

int gate_open_group(struct seal_gate *gate, int shard)
{
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
			 FAN_UNLIMITED_MARKS | FAN_REPORT_TID;

	gate->groups[shard] = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	return gate->groups[shard] < 0 ? -errno : 0;
}

void gate_close_groups(struct seal_gate *gate)
{
	for (int i = 0; i < SHARDS; i++)
		if (gate->groups[i] >= 0)
			close(gate->groups[i]);
}

int gate_mark_file(struct seal_gate *gate, int shard, unsigned int action, const struct file *file)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file->path_fd);
	return fanotify_mark(gate->groups[shard], action, WATCH_MASK, AT_FDCWD, path) < 0 ? -errno
											  : 0;
}

/* Another group than the first: that with the fewest waiters, or a new one; 0: there is none that has
 * far fewer than `old`. */
static int pick_shard(struct seal_gate *gate, int old)
{
	int best = 0;

	for (int i = 1; i < SHARDS && gate->groups[i] >= 0; i++)
		if (!best || gate->waiting[i] < gate->waiting[best])
			best = i;
	if (!best || gate->waiting[best] >= SHARD_FULL)
		for (int i = 1; i < SHARDS; i++)
			if (gate->groups[i] < 0) {
				if (!gate_open_group(gate, i))
					best = i;
				break;
			}
	/* Without a thread now the group gets one at the next tick. */
	if (best && !gate->readers[best] && gate_take_seat(gate, SEAT_READER, best))
		gate_start_ticks(gate);
	return best && (!old || gate->waiting[best] < gate->waiting[old] / 2) ? best : 0;
}

/* Both groups ask in between, which does no harm. Who waits already is answered by the first. */
void gate_move_crowd(struct seal_gate *gate, struct file *file)
{
	int old = file->shard, shard = pick_shard(gate, old);

	if (!shard || shard == old || gate_mark_file(gate, shard, FAN_MARK_ADD, file))
		return;
	gate_mark_file(gate, old, FAN_MARK_REMOVE, file);
	file->shard = shard;
}

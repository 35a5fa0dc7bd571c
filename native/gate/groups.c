/* The fanotify groups: all files begin in the first, and one with a crowd gets into another. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "internal.h"

/* A task that waits for the answer of one group holds marks of others on its file system as well
 * (fs/notify/mark.c fsnotify_prepare_user_wait), here those of `arming` and of overlays.c, and the release
 * of a group waits until nobody holds its marks (fsnotify_destroy_group). When this process is killed, its
 * files are released one after the other, the highest descriptor first (fs/file.c close_files,
 * kernel/task_work.c task_work_run, v6.18). So the groups that tasks wait for get high descriptors: were
 * one of the others released before them, it and every waiter would wait for ever. */
static int raised(const struct seal_gate *gate, int fd)
{
	int lowest = gate->descriptors / 2 < HIGH ? gate->descriptors / 2 : HIGH;
	int high = fcntl(fd, F_DUPFD_CLOEXEC, lowest);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

int gate_open_group(struct seal_gate *gate, int shard)
{
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
			 FAN_UNLIMITED_MARKS | FAN_REPORT_TID;
	int fd = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);

	gate->groups[shard] = fd < 0 ? -1 : raised(gate, fd);
	return fd < 0 ? -errno : 0;
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

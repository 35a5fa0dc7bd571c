/* What a task that the kernel has stopped for us is about to do: /proc/TID/syscall. */
#ifndef SEALSVC_OPERATION_H
#define SEALSVC_OPERATION_H

#include <stdint.h>

#include "sealsvc/verdict.h"

enum seal_task_state { SEAL_TASK_BLOCKED, SEAL_TASK_RUNNING, SEAL_TASK_GONE };

/* One line of /proc/TID/syscall. A blocked task's line is stable: only the task itself changes its
 * registers, and it sleeps in the kernel. */
struct seal_syscall {
	int state; /* enum seal_task_state */
	int64_t nr;
	uint64_t args[6], sp, pc;
};

/* Keeps the files it reads open, a few at a time: opening one costs four times a read. */
struct seal_syscall_reader {
	struct {
		int32_t tid;
		int fd;
	} slots[64];
};

void seal_syscall_reader_init(struct seal_syscall_reader *reader);
void seal_syscall_reader_close(struct seal_syscall_reader *reader);
void seal_syscall_read(struct seal_syscall_reader *reader, int32_t tid, struct seal_syscall *out);

/* What fanotify says of the event; offset and length are rounded out to pages by the kernel. */
struct seal_event {
	int32_t tid;
	int is_open;
	int has_range;
	uint64_t offset, length;
};

/* Judge `call`, seen in the task of `event`. A call that is not known, or could not be seen, is
 * SEAL_OP_HIDDEN or SEAL_OP_OPEN_HIDDEN: the failure direction is to hold too much. */
void seal_operation_judge(const struct seal_event *event, const struct seal_syscall *call,
			  struct seal_operation *out);

#endif

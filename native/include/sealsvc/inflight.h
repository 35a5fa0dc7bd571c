/* Has a task left the system call it was seen in? */
#ifndef SEALSVC_INFLIGHT_H
#define SEALSVC_INFLIGHT_H

#include <stdint.h>

#include "sealsvc/task_look.h"

/* `then` is what the call looked like, `now` a later look. A task that sleeps interruptibly is not
 * inside one: file systems wait for their locks and I/O uninterruptibly. (On DAX they wait for pages in
 * use interruptibly, with the inode's lock held: whoever reads the extents then waits as well.) 0 may
 * be wrong; 1 is not. */
int seal_call_ended(int32_t tid, const struct seal_syscall *then, const struct seal_syscall *now);

/* Wait until no thread of `pid` can be inside a call, begun before this one, that changes a map: 1,
 * or 0 after timeout_us. */
int seal_drain_process(int pid, uint32_t timeout_us);

#endif

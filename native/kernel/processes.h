/* Processes and their threads, as /proc lists them. */
#ifndef SEALSVC_KERNEL_PROCESSES_H
#define SEALSVC_KERNEL_PROCESSES_H

#include "vmas.h"

#include <dirent.h>

/* The next numeric entry of a directory of /proc, or 0 at its end. */
int seal_next_number(DIR *dir);

/* /proc/PID/task, or NULL. */
DIR *seal_open_tasks(int pid);

/* The areas of a process, whichever of its threads still has its memory. 0 or -errno. A process that is
 * gone, or has no memory (a kernel thread, a zombie), has none. `by_text` as for seal_vmas_walk. */
int seal_process_walk(int pid, int by_text, vma_visit visit, void *context);

#endif

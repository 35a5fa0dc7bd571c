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

/* Processes. The caller frees `at`. */
struct seal_pids {
	int *at;
	size_t count, room;
};

/* Adds every process that is not among the first `known`, and puts those in order. 0 or -errno.
 *
 * A process may hand on what it maps to a child that was not there when /proc was listed, and unmap it
 * before it is looked at: so whoever looks at all looks at what is new then as well, SEAL_PIDS_ROUNDS times. */
int seal_pids_new(struct seal_pids *pids, size_t known);

#define SEAL_PIDS_ROUNDS 8

#endif

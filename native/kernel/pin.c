#include "sealsvc/pin.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sealsvc/procfs.h"

#define MAX_THREADS 4096

int seal_pin(int fd, uint64_t offset, int pipe_ends[2])
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *address = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	struct iovec part = {address, page};
	int error = 0;

	if (address == MAP_FAILED)
		return -errno;
	if (pipe2(pipe_ends, O_CLOEXEC) < 0) {
		error = -errno;
	} else {
		/* A larger one would only count against fs.pipe-user-pages. */
		fcntl(pipe_ends[1], F_SETPIPE_SZ, (int)page);
		if (vmsplice(pipe_ends[1], &part, 1, SPLICE_F_NONBLOCK) != (ssize_t)page) {
			error = errno ? -errno : -EIO;
			close(pipe_ends[0]);
			close(pipe_ends[1]);
		}
	}
	munmap(address, page);
	return error;
}

int seal_pin_contended(int fd, uint64_t offset)
{
	char byte;
	struct iovec part = {&byte, 1};

	return preadv2(fd, &part, 1, (off_t)offset, RWF_NOWAIT) < 0 && errno == EAGAIN;
}

/* Where a task sleeps in the kernel: xfs_wait_dax_page, ext4_wait_dax_page, or, for the last close of an
 * unlinked file, dax_break_layout_final. */
static int waits_for_pages(int32_t tid)
{
	char path[40], name[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/wchan", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, name, sizeof(name) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	name[n] = '\0';
	return strstr(name, "wait_dax_page") || strstr(name, "dax_break_layout");
}

int64_t seal_pin_waiters(struct seal_pin_waiter *out, size_t max)
{
	struct seal_task_looker looker;
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int32_t tids[MAX_THREADS];
	int64_t found = 0;

	if (!proc)
		return -errno;
	seal_task_looker_init(&looker, 64);
	while ((entry = readdir(proc))) {
		int pid = atoi(entry->d_name);
		int count = pid > 0 ? seal_task_threads(pid, tids, MAX_THREADS) : 0;

		for (int i = 0; i < count && i < MAX_THREADS; i++) {
			if (!waits_for_pages(tids[i]))
				continue;
			if ((size_t)found < max) {
				out[found].tid = tids[i];
				out[found].tgid = pid;
				seal_syscall_read(&looker, tids[i], &out[found].call);
			}
			found++;
		}
	}
	closedir(proc);
	seal_task_looker_close(&looker);
	return found;
}

/* What takes a process, a thread, a namespace or a device of its own. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attack.h"

#define RACES 48 /* of openat2 in one operation */

static pid_t fork_mortal(void)
{
	pid_t child = fork();

	if (child == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return child;
}

static long status_of(pid_t child)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) < 0)
		return -errno;
	return WIFEXITED(status) ? -(long)WEXITSTATUS(status) : -EINTR;
}

static void end(long done)
{
	_exit(done < 0 ? (int)-done & 0xff : 0);
}

/* An operation of the simple kinds, made of the same record. */
static long simple(struct attacker *a, const struct op *op)
{
	switch (op->sub % 6) {
	case 0:
		return do_truncate(a, op);
	case 1:
		return do_fallocate(a, op);
	case 2:
		return do_clone(a, op);
	case 3:
		return do_uring(a, op);
	case 4:
		return do_write_flags(a, op);
	default:
		return do_madvise(a, op);
	}
}

struct errand {
	struct attacker *a;
	const struct op *op;
	long done;
};

static void *run_errand(void *argument)
{
	struct errand *errand = argument;

	errand->done = simple(errand->a, errand->op);
	return NULL;
}

/* By a thread, while the thread that leads the process is in another call, or gone from its own. */
long do_thread(struct attacker *a, const struct op *op)
{
	struct errand errand = {a, op, 0};
	pthread_t thread;
	pid_t child;

	if (op->flags & 1) { /* the leader exits; /proc/PID/syscall of it says nothing any more */
		child = fork_mortal();
		if (child == 0) {
			if (pthread_create(&thread, NULL, run_errand, &errand) == 0)
				syscall(SYS_exit, 0);
			_exit(1);
		}
		return status_of(child);
	}
	if (pthread_create(&thread, NULL, run_errand, &errand) != 0)
		return -EAGAIN;
	do_read(a, op);
	pthread_join(thread, NULL);
	return errand.done;
}

/* By a child, in a user namespace at times, with descriptors and mappings that it inherited. */
long do_child(struct attacker *a, const struct op *op)
{
	pid_t child = fork_mortal();

	if (child == 0) {
		if (op->flags & 1)
			unshare(CLONE_NEWUSER);
		if (op->flags & 2)
			unshare(CLONE_NEWNS);
		end(simple(a, op));
	}
	return status_of(child);
}

/* `how` lies in memory that another process rewrites all the time: the kernel reads it once, and
 * whoever judges the call must not believe what it reads there later. */
long do_openat2_shared(struct attacker *a, const struct op *op)
{
	volatile struct open_how *how =
		mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t free_flags = O_RDWR | O_CLOEXEC, bad = free_flags | O_TRUNC;
	unsigned pause = op->sub * 8u;
	char path[32];
	pid_t child;
	long fd, last = 0;

	if (how == MAP_FAILED)
		return -errno;
	how->flags = free_flags;
	target_path(op, path);
	child = fork_mortal();
	if (child == 0) {
		for (;;) {
			how->flags = bad;
			for (volatile unsigned i = 0; i < pause; i++)
				;
			how->flags = free_flags;
			for (volatile unsigned i = 0; i < pause; i++)
				;
		}
	}
	for (int race = 0; race < RACES; race++) {
		fd = syscall(SYS_openat2, (long)a->directory, path, how, sizeof(*how));
		last = fd < 0 ? -errno : 0;
		if (fd >= 0)
			close((int)fd);
	}
	if (child > 0) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	munmap((void *)how, BLOCK);
	return last;
}

/* The kernel truncates and writes the file `core` of the current directory. */
long do_core_dump(struct attacker *a, const struct op *op)
{
	const struct rlimit limit = {1 << 20, 1 << 20};
	int status;
	pid_t child = fork_mortal();

	if (child == 0) {
		setrlimit(RLIMIT_CORE, &limit);
		prctl(PR_SET_DUMPABLE, 1);
		if (fchdir(a->directory) == 0)
			kill(getpid(), op->sub & 1 ? SIGSEGV : SIGQUIT);
		_exit(0);
	}
	if (child < 0 || waitpid(child, &status, 0) < 0)
		return -errno;
	return WCOREDUMP(status) ? 0 : -EBUSY;
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd >= 0 && write(fd, text, strlen(text)) < 0)
		close(fd);
	else if (fd >= 0)
		close(fd);
}

/* The files as the upper layer of an overlay in a namespace of the attacker's own. */
static long truncate_through_overlay(struct attacker *a, const struct op *op)
{
	char text[64], options[640], path[64], file[32];
	const char *name = strrchr(a->control->directory, '/');
	unsigned uid = getuid();

	if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
		return -errno;
	snprintf(text, sizeof(text), "0 %u 1", uid);
	write_text("/proc/self/setgroups", "deny");
	write_text("/proc/self/uid_map", text);
	write_text("/proc/self/gid_map", text);
	snprintf(path, sizeof(path), "../over%u", a->worker);
	if (chdir(path) <
	    0) /* from the epoch's directory; its descriptor is of the old namespace */
		return -errno;
	snprintf(options, sizeof(options), "lowerdir=low,upperdir=%s%s,workdir=work,userxattr",
		 op->sub & 1 ? "" : "..", op->sub & 1 ? a->control->directory : name);
	if (mount("overlay", "merged", "overlay", 0, options) < 0)
		return -errno;
	target_path(op, file);
	snprintf(path, sizeof(path), "merged/%s", file);
	if (op->sub & 2) {
		int fd = open(path, O_RDWR | O_CLOEXEC);
		long done =
			fd < 0 || ftruncate(fd, (off_t)(op->offset % FILE_BYTES)) < 0 ? -errno : 0;

		return done;
	}
	return truncate(path, (off_t)(op->offset % FILE_BYTES)) < 0 ? -errno : 0;
}

long do_overlay(struct attacker *a, const struct op *op)
{
	pid_t child = fork_mortal();

	if (child == 0)
		end(truncate_through_overlay(a, op));
	return status_of(child);
}

/* A loop device on the file: it goes with our descriptor of it. */
long do_loop(struct attacker *a, const struct op *op)
{
	struct loop_config config = {.info.lo_flags = LO_FLAGS_AUTOCLEAR};
	uint64_t range[2] = {op->offset % FILE_BYTES & ~(uint64_t)(BLOCK - 1), 65536};
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), device = -1, fd = -1, number;
	char path[32];
	long done = -EBUSY;

	if (control < 0)
		return -errno;
	number = ioctl(control, LOOP_CTL_GET_FREE);
	snprintf(path, sizeof(path), "/dev/loop%d", number);
	if (number >= 0)
		device = open(path, O_RDWR | O_CLOEXEC);
	if (device >= 0)
		fd = target_open(a, op, 0);
	config.fd = (uint32_t)fd;
	if (fd >= 0 && ioctl(device, LOOP_CONFIGURE, &config) == 0) {
		if (op->sub & 1)
			done = ioctl(device, BLKDISCARD, range) < 0 ? -errno : 0;
		else
			done = pwrite(device, a->buffer, 65536, (off_t)range[0]) < 0 ? -errno : 0;
		if (done == 0 && fsync(device) < 0)
			done = -errno;
	}
	target_close(a, op, fd);
	close(device);
	close(control);
	return done;
}

#include "sealsvc/lease.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BROKEN_ROOM 65536

struct seal_leases {
	int notify, signals, lease_signal;
	int32_t tid; /* the listening thread: breaks are signalled to it alone */
	pthread_t listener;
	pthread_barrier_t started;
	pthread_mutex_t lock;
	int broken[BROKEN_ROOM];
	size_t broken_count;
	int lost;
};

static void note_break(struct seal_leases *leases, int fd)
{
	pthread_mutex_lock(&leases->lock);
	if (fd < 0 || leases->broken_count == BROKEN_ROOM)
		leases->lost = 1;
	else
		leases->broken[leases->broken_count++] = fd;
	pthread_mutex_unlock(&leases->lock);
	eventfd_write(leases->notify, 1);
}

/* The thread's own mask holds the signals back, so that only the signalfd takes them. When the queue
 * of real-time signals is full the kernel sends a bare SIGIO instead, which names no descriptor. */
static void *listener_main(void *argument)
{
	struct seal_leases *leases = argument;
	struct signalfd_siginfo info[16];
	int state;

	pthread_setname_np(pthread_self(), "seal-leases");
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	leases->tid = (int32_t)syscall(SYS_gettid);
	pthread_barrier_wait(&leases->started);
	for (;;) {
		ssize_t n;

		pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
		n = read(leases->signals, info, sizeof(info));
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(info[0]); i++)
			note_break(leases, (int)info[i].ssi_signo == leases->lease_signal
						   ? info[i].ssi_fd
						   : -1);
	}
	return NULL;
}

static int start(struct seal_leases *leases)
{
	sigset_t ours, all, before;
	int error;

	sigemptyset(&ours);
	sigaddset(&ours, leases->lease_signal);
	sigaddset(&ours, SIGIO);
	leases->signals = signalfd(-1, &ours, SFD_CLOEXEC);
	if (leases->signals < 0)
		return -errno;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&leases->listener, NULL, listener_main, leases);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return -error;
	pthread_barrier_wait(&leases->started);
	return 0;
}

int seal_leases_open(struct seal_leases **out)
{
	struct seal_leases *leases = calloc(1, sizeof(*leases));
	int error;

	if (!leases)
		return -ENOMEM;
	leases->signals = -1;
	leases->lease_signal = SIGRTMIN + 4;
	pthread_mutex_init(&leases->lock, NULL);
	pthread_barrier_init(&leases->started, NULL, 2);
	leases->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = leases->notify < 0 ? -errno : start(leases);
	if (error) {
		if (leases->notify >= 0)
			close(leases->notify);
		if (leases->signals >= 0)
			close(leases->signals);
		free(leases);
		return error;
	}
	*out = leases;
	return 0;
}

void seal_leases_close(struct seal_leases *leases)
{
	pthread_cancel(leases->listener);
	pthread_join(leases->listener, NULL);
	close(leases->signals);
	close(leases->notify);
	free(leases);
}

int seal_leases_fd(const struct seal_leases *leases)
{
	return leases->notify;
}

/* The owner and the signal are set anew each time: F_UNLCK resets both (fs/locks.c lease_modify), and
 * a lease without them would break with a SIGIO to the whole process. */
int seal_lease_take(struct seal_leases *leases, int fd)
{
	struct f_owner_ex owner = {F_OWNER_TID, leases->tid};

	if (fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
		return -errno;
	if (fcntl(fd, F_SETSIG, leases->lease_signal) < 0 || fcntl(fd, F_SETOWN_EX, &owner) < 0) {
		int error = -errno;

		fcntl(fd, F_SETLEASE, F_UNLCK);
		return error;
	}
	/* A break between the two was signalled to nobody we hear. */
	if (fcntl(fd, F_GETLEASE) != F_WRLCK)
		note_break(leases, fd);
	return 0;
}

int seal_lease_drop(int fd)
{
	return fcntl(fd, F_SETLEASE, F_UNLCK) < 0 ? -errno : 0;
}

int seal_lease_whole(int fd)
{
	int type = fcntl(fd, F_GETLEASE);

	return type < 0 ? -errno : type == F_WRLCK;
}

size_t seal_leases_broken(struct seal_leases *leases, int *out, size_t max)
{
	eventfd_t count;
	size_t n = 0;

	pthread_mutex_lock(&leases->lock);
	if (leases->lost && max > 0) {
		out[n++] = -1;
		leases->lost = 0;
	}
	while (n < max && leases->broken_count > 0)
		out[n++] = leases->broken[--leases->broken_count];
	if (leases->broken_count == 0)
		eventfd_read(leases->notify, &count);
	pthread_mutex_unlock(&leases->lock);
	return n;
}

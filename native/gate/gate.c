/* The beginning and the end of the gate, and what it is told once. */
#include "sealsvc/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

static void close_if_open(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* 0 or -errno; what is open stays so. */
static int open_groups(struct seal_gate *gate)
{
	int error;

	for (int i = 0; i < SHARDS; i++)
		gate->groups[i] = -1;
	error = gate_open_group(gate, 0);
	if (error)
		return error;
	gate->arming = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC, O_RDONLY);
	return gate->arming < 0 ? -errno : 0;
}

static void destroy(struct seal_gate *gate)
{
	/* The groups first: their end lets whatever is held go on. */
	gate_close_groups(gate);
	close_if_open(gate->arming);
	for (size_t i = 0; i < BUCKETS; i++) {
		while (gate->by_id[i]) {
			struct waiter *waiter = gate->by_id[i];

			close_if_open(waiter->event_fd);
			gate_unlist_waiter(waiter);
			gate_forget_waiter(gate, waiter);
			free(waiter);
		}
		while (gate->files[i]) {
			gate_free_file(gate, gate->files[i]);
		}
	}
	close_if_open(gate->placeholder);
	close_if_open(gate->prover);
	close_if_open(gate->epoll);
	close_if_open(gate->wake);
	close_if_open(gate->later);
	close_if_open(gate->ticks);
	close_if_open(gate->trip);
	free(gate);
}

/* One that does not end is stuck in a look; it is the process's end that ends it. */
static void end_seat(struct seal_gate *gate, struct seat *seat)
{
	struct timespec patience;

	if (!seat)
		return;
	clock_gettime(CLOCK_REALTIME, &patience);
	patience.tv_sec++;
	if (pthread_timedjoin_np(seat->thread, NULL, &patience)) {
		gate->lost[seat->kind]++;
		return;
	}
	seal_task_looker_close(&seat->looker);
	free(seat);
}

static void stop(struct seal_gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->stopping = 1;
	pthread_cond_broadcast(&gate->work);
	pthread_mutex_unlock(&gate->lock);
	eventfd_write(gate->wake, 1);
	pthread_join(gate->minder, NULL); /* from now on nobody's place is given away */
	for (int i = 0; i < SHARDS; i++) {
		if (gate->readers[i])
			pthread_cancel(gate->readers[i]->thread);
		end_seat(gate, gate->readers[i]);
	}
	end_seat(gate, gate->looker);
	pthread_mutex_lock(&gate->lock);
	while (gate_answer_some(gate)) /* nobody else is left to do it */
		;
	pthread_mutex_unlock(&gate->lock);
}

static int start_threads(struct seal_gate *gate)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&gate->minder, NULL, gate_minder_main, gate);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return error;
	pthread_mutex_lock(&gate->lock);
	error = gate_take_seat(gate, SEAT_LOOKER, 0);
	if (!error)
		error = gate_take_seat(gate, SEAT_READER, 0);
	pthread_mutex_unlock(&gate->lock);
	if (error)
		stop(gate);
	return error;
}

/* Events need descriptors of their own: the kernel denies what it cannot open one for. */
static int highest_descriptor(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur > INT32_MAX)
		return INT32_MAX;
	return (int)files.rlim_cur - DESCRIPTORS_FREE;
}

int seal_gate_open(struct seal_gate **out, const struct seal_gate_outlet *outlet)
{
	struct seal_gate *gate = calloc(1, sizeof(*gate));
	struct epoll_event wake = {.events = EPOLLIN, .data.u64 = EVENT_WAKE};
	struct epoll_event later = {.events = EPOLLIN, .data.u64 = EVENT_LATER};
	struct epoll_event ticks = {.events = EPOLLIN, .data.u64 = EVENT_TICK};
	struct epoll_event trip = {.events = EPOLLIN, .data.u64 = EVENT_TRIP};
	int error;

	if (!gate)
		return -ENOMEM;
	gate->tgid = getpid();
	gate->outlet = *outlet;
	pthread_mutex_init(&gate->lock, NULL);
	pthread_cond_init(&gate->work, NULL);
	list_init(&gate->unseen);
	list_init(&gate->released);
	list_init(&gate->answers);
	list_init(&gate->fresh);
	gate->seat_main[SEAT_READER] = gate_reader_main;
	gate->seat_main[SEAT_LOOKER] = gate_looker_main;
	gate->descriptors = highest_descriptor();
	gate->prover = gate->placeholder = gate->arming = gate->epoll = gate->wake = -1;
	gate->later = gate->ticks = gate->trip = -1;
	error = open_groups(gate);
	if (!error)
		gate->placeholder = open("/", O_PATH | O_CLOEXEC);
	if (gate->placeholder >= 0)
		gate->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (gate->epoll >= 0)
		gate->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gate->wake >= 0)
		gate->later = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->later >= 0)
		gate->ticks = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->ticks >= 0)
		gate->trip = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (gate->trip < 0 || epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->wake, &wake) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->later, &later) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->ticks, &ticks) < 0 ||
	    epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->trip, &trip) < 0) {
		error = error ? error : -errno;
		destroy(gate);
		return error;
	}
	error = start_threads(gate);
	if (error) {
		destroy(gate);
		return error;
	}
	*out = gate;
	return 0;
}

void seal_gate_close(struct seal_gate *gate)
{
	stop(gate);
	/* A thread that is stuck in a look may come back to what it needs: it ends with the process. */
	if (gate->lost[SEAT_READER] || gate->lost[SEAT_LOOKER])
		gate_close_groups(gate);
	else
		destroy(gate);
}

void seal_gate_exempt(struct seal_gate *gate, int32_t tgid)
{
	__atomic_store_n(&gate->exempt, tgid, __ATOMIC_RELEASE);
}

void seal_gate_on_watch(struct seal_gate *gate, seal_gate_watch_judge *judge, void *context)
{
	pthread_mutex_lock(&gate->lock);
	gate->judge = judge;
	gate->judge_context = context;
	pthread_mutex_unlock(&gate->lock);
}

int seal_gate_prover(struct seal_gate *gate, int prover)
{
	int old, fresh = prover < 0 ? -1 : fcntl(prover, F_DUPFD_CLOEXEC, 0);

	if (prover >= 0 && fresh < 0)
		return -errno;
	pthread_mutex_lock(&gate->lock);
	old = gate->prover;
	gate->prover = fresh;
	pthread_mutex_unlock(&gate->lock);
	close_if_open(old);
	return 0;
}

pthread_mutex_t *seal_gate_lock(struct seal_gate *gate)
{
	return &gate->lock;
}

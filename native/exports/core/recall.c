/* The thread that obeys recalls. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define FIRST_PAUSE_MS 1
/* Before the first try to seal again: the operation that waited has to get its file, or it is met, and
 * meets the new seal, once more. */
#define LET_THROUGH_MS 5
#define LONGEST_PAUSE_MS 200
#define AWAY_MS 500 /* between looks for a service that went away */
#define NS_PER_MS 1000000u

static int closing(struct export_target *target)
{
	return __atomic_load_n(&target->closing, __ATOMIC_ACQUIRE) != 0;
}

static void tell_why(struct export_target *target, const char *why)
{
	char text[sizeof(target->stats->why)];

	snprintf(text, sizeof(text), "%s", why);
	memcpy(target->stats->why, text, sizeof(text));
}

void recall_pause_begins(struct export_target *target, const char *why)
{
	tell_why(target, why);
	if (!target->stats->paused_at)
		target->stats->paused_at = export_now(CLOCK_BOOTTIME);
	target->stats->state = EXPORT_PAUSED;
	gate_close(&target->gate);
	if (target->options.gate)
		target->options.gate(target->options.context, 1);
}

void recall_pause_ends(struct export_target *target)
{
	uint64_t began = target->stats->paused_at;

	tell_why(target, "");
	target->stats->paused_at = 0;
	target->stats->state = EXPORT_SERVING;
	if (gate_open(&target->gate)) {
		/* Paused by somebody else, too. */
		target->stats->paused_at = began;
		target->stats->state = EXPORT_PAUSED;
		return;
	}
	export_record(&target->stats->pauses, export_now(CLOCK_BOOTTIME) - began);
	if (target->options.gate)
		target->options.gate(target->options.context, 0);
}

/* Interrupted by recall_stop(). */
static void rest(struct export_target *target, int ms)
{
	struct pollfd poller = {.fd = target->wake, .events = POLLIN};

	if (poll(&poller, 1, closing(target) ? 0 : ms) > 0) {
		eventfd_t count;

		eventfd_read(target->wake, &count);
	}
}

/* The service is there again, or was never away; `gone` when it does not know our ring. */
static int reconnect(struct export_target *target)
{
	int error = seal_is_connected(target->client) ? 0 : seal_reconnect(target->client);

	/* The service is another, which took nothing over: everything was released meanwhile. */
	if (error == -EACCES)
		target->gone = 1;
	return error;
}

/* What a failed command may take: the connection, or the whole ring, anew. */
static void mend(struct export_target *target)
{
	if (target->client && !target->gone && reconnect(target))
		return;
	if ((!target->client || target->gone) && !target_connect(target))
		target->gone = 0;
}

static int longer(int pause)
{
	return pause * 2 > LONGEST_PAUSE_MS ? LONGEST_PAUSE_MS : pause * 2;
}

/* A seal that is recalled has to be returned, however long the service is away: until then its
 * deadline counts. 0, or -ESHUTDOWN. */
int recall_give_back(struct export_target *target)
{
	int pause = FIRST_PAUSE_MS;

	target_unmap(target);
	while (!target->gone && target_release(target)) {
		if (closing(target))
			return -ESHUTDOWN;
		tell_why(target, target->why);
		rest(target, pause);
		pause = longer(pause);
		reconnect(target);
	}
	return 0;
}

int recall_reseal(struct export_target *target)
{
	int pause = FIRST_PAUSE_MS;

	if (target->gone)
		mend(target);
	while (!target->client || target->gone || target_acquire(target)) {
		if (closing(target))
			return -ESHUTDOWN;
		tell_why(target, target->why);
		if (pause == LONGEST_PAUSE_MS)
			target_say(target, LOG_NOTICE, "still paused: %s", target->why);
		rest(target, pause);
		pause = longer(pause);
		mend(target);
	}
	return 0;
}

/* The seal was asked for: a pause, from the first request that waits to the first that goes on. */
static void obey(struct export_target *target)
{
	target_say(target, LOG_INFO, "recalled: requests wait");
	recall_pause_begins(target, "recalled");
	if (!recall_give_back(target))
		rest(target, LET_THROUGH_MS);
	if (closing(target) || recall_reseal(target))
		return; /* it is being closed: the gate stays as it is, and nobody waits at it */
	recall_pause_ends(target);
	target_say(target, LOG_INFO, "sealed again: requests go on");
}

/* Requests look at the seal that is refreshed: not while they are under way. */
static int take_over(struct export_target *target)
{
	int error;

	gate_close(&target->gate);
	error = seal_refresh(target->client, &target->seal);
	if (!gate_open(&target->gate) && target->options.gate)
		target->options.gate(target->options.context, 0);
	return error;
}

/* 1 when the seal has to be given back, or is gone. */
static int wanted(struct export_target *target)
{
	uint32_t state;

	if (target->recalled || target->gone)
		return 1;
	if (seal_valid(&target->seal))
		return 0;
	state = seal_state_of(&target->seal);
	/* A change of its terms, and of nothing else. */
	if (state == SEAL_GRANTED || state == SEAL_ACTIVE || state == SEAL_COURTESY)
		return take_over(target) != 0;
	return 1;
}

static void look(struct export_target *target)
{
	int error = seal_dispatch(target->client);

	if (error == -EPIPE) {
		target->gone = 1;
		target_say(target, LOG_ERR, "the keeper of the seals has ended");
	}
	if (seal_missed(target->client) && seal_refresh(target->client, &target->seal))
		target->recalled = 1;
	if (wanted(target))
		obey(target);
}

static void *keep(void *context)
{
	struct export_target *target = context;

	while (!closing(target)) {
		struct pollfd pollers[] = {
			{.fd = target->wake, .events = POLLIN},
			{.fd = seal_fd(target->client), .events = POLLIN},
		};
		int away = !seal_is_connected(target->client);
		eventfd_t count;

		poll(pollers, 2, away ? AWAY_MS : -1);
		if (pollers[0].revents)
			eventfd_read(target->wake, &count);
		pthread_mutex_lock(&target->turn);
		if (!closing(target) && away)
			reconnect(target);
		if (!closing(target))
			look(target);
		pthread_mutex_unlock(&target->turn);
	}
	return NULL;
}

int recall_start(struct export_target *target)
{
	sigset_t all, before;
	int error;

	/* Signals are the front's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&target->thread, NULL, keep, target);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	target->started = !error;
	return -error;
}

void recall_look(struct export_target *target)
{
	eventfd_write(target->wake, 1);
}

void recall_stop(struct export_target *target)
{
	__atomic_store_n(&target->closing, 1, __ATOMIC_RELEASE);
	recall_look(target);
	if (target->started)
		pthread_join(target->thread, NULL);
	target->started = 0;
}

/* The canary: whether the kernel still refuses what BPF programs were loaded to refuse.
 *
 * Its file is a memfd of the service, sealed in the maps of the programs by an entry of its own. Nobody else
 * can reach it, so each operation on it must fail with ETXTBSY; one that does not was let through, as each
 * other on any sealed file would have been. It is tried every second, whether or not a service lives, and
 * whenever one asks. While it fails, rings grant nothing. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

#define FILE_SIZE (KEEPER_CANARY_BLOCK * 2)
#define EXT4_IOC_SWAP_BOOT                                                                         \
	_IO('f', 17) /* refused before the file system is asked whether it knows it */

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x40 /* since Linux 6.11 */
#endif

/* What passes would leave the file as it is, or is put right. */
static int attempt(int fd, enum keeper_canary_trial trial)
{
	static char block[KEEPER_CANARY_BLOCK];
	struct iovec part = {block, sizeof(block)};
	loff_t from = 0, to = KEEPER_CANARY_BLOCK;

	switch (trial) {
	case KEEPER_CANARY_TRUNCATE:
		return ftruncate(fd, KEEPER_CANARY_BLOCK);
	case KEEPER_CANARY_FALLOCATE:
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, FILE_SIZE);
	case KEEPER_CANARY_COPY:
		return (int)copy_file_range(fd, &from, fd, &to, KEEPER_CANARY_BLOCK, 0);
	case KEEPER_CANARY_IOCTL:
		return ioctl(fd, EXT4_IOC_SWAP_BOOT);
	case KEEPER_CANARY_ATOMIC:
		return (int)pwritev2(fd, &part, 1, 0, RWF_ATOMIC);
	}
	return 0;
}

/* Those that were not refused. The lock is held. */
static void try_all(struct canary *canary)
{
	uint32_t failing = 0;

	for (uint32_t trial = 1; canary->fd >= 0 && trial <= KEEPER_CANARY_ATOMIC; trial <<= 1)
		if (canary->trials & trial &&
		    (attempt(canary->fd, (enum keeper_canary_trial)trial) >= 0 || errno != ETXTBSY))
			failing |= trial;
	/* Else the next trial would not shorten it. */
	if (failing & KEEPER_CANARY_TRUNCATE && ftruncate(canary->fd, FILE_SIZE))
		failing |= KEEPER_CANARY_TRUNCATE;
	if (failing && !canary->failing)
		canary->lapses++;
	if (!failing != !canary->failing)
		seal_rings_suspend(canary->rings, failing != 0);
	canary->failing = failing;
}

static void *run(void *context)
{
	struct canary *canary = context;
	struct timespec next;

	pthread_mutex_lock(&canary->lock);
	while (!canary->stopping) {
		clock_gettime(CLOCK_MONOTONIC, &next);
		next.tv_sec++;
		pthread_cond_timedwait(&canary->stop, &canary->lock, &next);
		try_all(canary);
	}
	pthread_mutex_unlock(&canary->lock);
	return NULL;
}

void canary_init(struct canary *canary, struct seal_rings *rings)
{
	pthread_condattr_t attributes;

	*canary = (struct canary){.fd = -1, .rings = rings};
	pthread_mutex_init(&canary->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&canary->stop, &attributes);
}

int64_t canary_set(struct canary *canary, int fd, uint32_t trials)
{
	int64_t result;
	int error = 0;

	SCOPED_LOCK(&canary->lock);
	try_all(canary); /* the one before, once more */
	result = canary->lapses;
	if (canary->fd >= 0)
		close(canary->fd);
	canary->fd = fd;
	canary->trials = trials;
	canary->lapses = 0;
	try_all(canary);
	result = result << 32 | canary->failing;
	if (fd >= 0 && !canary->started) {
		error = pthread_create(&canary->thread, NULL, run, canary);
		canary->started = !error;
	}
	return error ? -error : result;
}

int64_t canary_ask(struct canary *canary)
{
	int64_t result;

	SCOPED_LOCK(&canary->lock);
	try_all(canary);
	result = (int64_t)canary->lapses << 32 | canary->failing;
	return result;
}

void canary_stop(struct canary *canary)
{
	pthread_mutex_lock(&canary->lock);
	canary->stopping = 1;
	pthread_cond_signal(&canary->stop);
	pthread_mutex_unlock(&canary->lock);
	if (canary->started)
		pthread_join(canary->thread, NULL);
	if (canary->fd >= 0)
		close(canary->fd);
}

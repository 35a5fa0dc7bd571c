#include "walk.h"

#include "base/vector.h"
#include "processes.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"

void *seal_walk_add(struct walk_rows *rows)
{
	char *at = vector_grown(rows->at, rows->count, &rows->room, 16, rows->size);

	if (!at)
		return NULL;
	rows->at = at;
	return memset(rows->at + rows->size * rows->count++, 0, rows->size);
}

/* Processes at which a thread has been left behind. */
struct stuck {
	int pid, by_text;
};
static pthread_mutex_t stuck_lock = PTHREAD_MUTEX_INITIALIZER;
static struct stuck stuck[SEAL_WALK_LOST];
static size_t stuck_count;

static int is_stuck(int pid, int by_text)
{
	int found = 0;

	SCOPED_LOCK(&stuck_lock);
	for (size_t i = 0; i < stuck_count && !found; i++)
		found = stuck[i].pid == pid && stuck[i].by_text == by_text;
	return found;
}

/* 0, or -EAGAIN: there are as many as there may be. */
static int note_stuck(int pid, int by_text)
{
	int error = 0;

	SCOPED_LOCK(&stuck_lock);
	if (stuck_count < SEAL_WALK_LOST)
		stuck[stuck_count++] = (struct stuck){pid, by_text};
	else
		error = -EAGAIN;
	return error;
}

static void forget_stuck(int pid, int by_text)
{
	SCOPED_LOCK(&stuck_lock);
	for (size_t i = 0; i < stuck_count; i++)
		if (stuck[i].pid == pid && stuck[i].by_text == by_text) {
			stuck[i] = stuck[--stuck_count];
			break;
		}
}

static int has_room(void)
{
	int room;

	SCOPED_LOCK(&stuck_lock);
	room = stuck_count < SEAL_WALK_LOST;
	return room;
}

/* What one thread does. Owned by the caller until it is lost, then by the thread. */
struct errand {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct walk walk;
	int *pids;
	size_t count, next; /* pids[next] is being looked at */
	int by_text;	    /* how pids[next] is looked at */
	int lost, done, error;
	struct walk_rows rows; /* of all processes before pids[next] */
};

static void free_errand(struct errand *errand)
{
	pthread_cond_destroy(&errand->changed);
	pthread_mutex_destroy(&errand->lock);
	free(errand->pids);
	free(errand->rows.at);
	free(errand);
}

static int add_all(struct walk_rows *to, const struct walk_rows *from)
{
	for (size_t i = 0; i < from->count; i++) {
		void *row = seal_walk_add(to);

		if (!row)
			return -ENOMEM;
		memcpy(row, from->at + i * from->size, from->size);
	}
	return 0;
}

/* What a look at one process gave, into the errand, which is locked. */
static int keep_rows(struct errand *errand, int pid, int error, const struct walk_rows *found)
{
	if (!error)
		return found->count ? add_all(&errand->rows, found) : 0;
	if (error == -ENOMEM || error == -ENFILE || error == -EMFILE)
		return error; /* ours, not the process's */
	return errand->walk.unknown(pid, error, &errand->rows);
}

/* How to look: by query, by text when a thread waits for the answer to a query already, or (-1) not. */
static int way_to(int pid)
{
	if (!is_stuck(pid, 0))
		return 0;
	return is_stuck(pid, 1) ? -1 : 1;
}

static void *run_errand(void *argument)
{
	struct errand *errand = argument;
	struct walk_rows found = {.size = errand->walk.row_size};

	pthread_mutex_lock(&errand->lock);
	while (errand->next < errand->count && !errand->error) {
		int pid = errand->pids[errand->next], by_text, error = -ETIMEDOUT;

		by_text = errand->by_text = errand->by_text ? 1 : way_to(pid);
		pthread_mutex_unlock(&errand->lock);
		found.count = 0;
		if (by_text >= 0)
			error = errand->walk.look(&errand->walk, pid, by_text, &found);
		pthread_mutex_lock(&errand->lock);
		if (errand->lost) {
			pthread_mutex_unlock(&errand->lock);
			forget_stuck(pid, by_text);
			free(found.at);
			free_errand(errand);
			return NULL;
		}
		errand->error = keep_rows(errand, pid, error, &found);
		errand->by_text = 0;
		errand->next++;
	}
	errand->done = 1;
	pthread_cond_signal(&errand->changed);
	pthread_mutex_unlock(&errand->lock);
	free(found.at);
	return NULL;
}

/* Of pids[0, count). NULL: no memory, or no thread. */
static struct errand *start_errand(const struct walk *walk, const int *pids, size_t count,
				   int by_text, pthread_t *thread)
{
	struct errand *errand = calloc(1, sizeof(*errand));
	pthread_condattr_t clock;

	if (!errand)
		return NULL;
	pthread_mutex_init(&errand->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&errand->changed, &clock);
	pthread_condattr_destroy(&clock);
	errand->walk = *walk;
	errand->rows.size = walk->row_size;
	errand->count = count;
	errand->by_text = by_text;
	errand->pids = malloc((count + 1) * sizeof(*pids));
	if (errand->pids) {
		memcpy(errand->pids, pids, count * sizeof(*pids));
		if (!pthread_create(thread, NULL, run_errand, errand))
			return errand;
	}
	free_errand(errand);
	return NULL;
}

static struct timespec after_patience(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_nsec += SEAL_WALK_PATIENCE * 1000000L;
	if (at.tv_nsec >= 1000000000L) {
		at.tv_nsec -= 1000000000L;
		at.tv_sec++;
	}
	return at;
}

/* Waits while the thread gets on, with the errand locked. 1: it is done, 0: it has been at one process for
 * too long. */
static int await(struct errand *errand)
{
	while (!errand->done) {
		size_t at = errand->next;
		struct timespec until = after_patience();
		int error = 0;

		while (!errand->done && error != ETIMEDOUT)
			error = pthread_cond_timedwait(&errand->changed, &errand->lock, &until);
		if (!errand->done && errand->next == at)
			return 0;
	}
	return 1;
}

/* Looks at pids[0, count) until done or stopped by one: how many there are results for. *by_text tells how
 * to look at the next. */
static int64_t look_at_some(const struct walk *walk, const int *pids, size_t count, int *by_text,
			    struct walk_rows *rows)
{
	pthread_t thread;
	struct errand *errand = start_errand(walk, pids, count, *by_text, &thread);
	int64_t looked;
	int done, error;

	if (!errand)
		return -ENOMEM;
	pthread_mutex_lock(&errand->lock);
	done = await(errand);
	error = add_all(rows, &errand->rows);
	if (!error)
		error = errand->error;
	looked = (int64_t)errand->next;
	if (done) {
		pthread_mutex_unlock(&errand->lock);
		pthread_join(thread, NULL);
		free_errand(errand);
		*by_text = 0;
		return error ? error : looked;
	}
	if (!error)
		error = note_stuck(pids[looked], errand->by_text);
	if (!error && errand->by_text) {
		error = walk->unknown(pids[looked], -ETIMEDOUT, rows);
		looked++;
	}
	*by_text = !errand->by_text;
	errand->lost = 1;
	pthread_detach(thread);
	pthread_mutex_unlock(&errand->lock);
	return error ? error : looked;
}

static int look_at(const struct walk *walk, const int *pids, size_t count, struct walk_rows *rows)
{
	int by_text = 0;

	for (size_t at = 0; at < count;) {
		int64_t looked;

		if (!has_room())
			return -EAGAIN;
		looked = look_at_some(walk, pids + at, count - at, &by_text, rows);
		if (looked < 0)
			return (int)looked;
		at += (size_t)looked;
	}
	return 0;
}

static int look_at_all(const struct walk *walk, struct walk_rows *rows)
{
	struct seal_pids pids = {0};
	size_t known = 0;
	int error;

	for (int round = 0;; round++) {
		error = seal_pids_new(&pids, known);
		if (error || pids.count == known)
			break;
		if (round == SEAL_PIDS_ROUNDS) {
			error = -EAGAIN;
			break;
		}
		error = look_at(walk, pids.at + known, pids.count - known, rows);
		if (error)
			break;
		known = pids.count;
	}
	free(pids.at);
	return error;
}

int seal_walk(const struct walk *walk, int pid, struct walk_rows *rows)
{
	*rows = (struct walk_rows){.size = walk->row_size};
	return pid ? look_at(walk, &pid, 1, rows) : look_at_all(walk, rows);
}

/* Who maps a file, and by which description, as a BPF program sees it in the processes' memory. */
#include "proof.h"

#include "base/vector.h"
#include "processes.h"
#include "walk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Memories and tables of descriptors that have been counted: processes can share either. */
struct addresses {
	uint64_t *at;
	size_t count, room;
};

struct search {
	int program;
	struct seal_proof question;
	struct walk_rows *rows;
	struct addresses memories, tables;
	uint64_t references; /* to the description, that were found */
	int unknown;	     /* nothing can be said about somebody */
};

/* 1 when it is new, 0 when not, -errno. */
static int add_address(struct addresses *known, uint64_t address)
{
	uint64_t *next;

	for (size_t i = 0; i < known->count; i++)
		if (known->at[i] == address)
			return 0;
	next = VECTOR_ADD(known, 64);
	if (!next)
		return -ENOMEM;
	*next = address;
	return 1;
}

/* Another thread of the process may change its memory just now. */
#define ATTEMPTS 5

static int ask(struct search *search, int task, struct seal_proof *question)
{
	const struct timespec moment = {.tv_nsec = 1000000};
	int maps = -EBUSY;

	for (int i = 0; i < ATTEMPTS && maps == -EBUSY; i++) {
		if (i)
			nanosleep(&moment, NULL);
		*question = search->question;
		question->task = task;
		maps = seal_proof_run(search->program, question);
	}
	return maps;
}

/* Counts what was found once. 0 or -errno. */
static int count(struct search *search, const struct seal_proof *found)
{
	int fresh = found->areas ? add_address(&search->memories, found->memory) : 0;

	if (fresh > 0)
		search->references += found->areas;
	if (fresh >= 0 && found->descriptors) {
		fresh = add_address(&search->tables, found->table);
		if (fresh > 0)
			search->references += found->descriptors;
	}
	return fresh < 0 ? fresh : 0;
}

static int note(struct search *search, int pid, int maps)
{
	struct seal_held *row;

	if (!maps)
		return 0;
	row = seal_walk_add(search->rows);
	if (!row)
		return -ENOMEM;
	*row = (struct seal_held){pid, maps};
	search->unknown |= maps < 0;
	return 0;
}

static int exists(int pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	return access(path, F_OK) == 0;
}

/* A leader that has exited before its threads has no memory any more; they have. */
static int look_at_threads(struct search *search, int pid, struct seal_proof *found)
{
	DIR *tasks = seal_open_tasks(pid);
	int maps = 0, tid;

	if (!tasks)
		return 0;
	while (!found->memory && (tid = seal_next_number(tasks)) > 0) {
		if (tid == pid)
			continue;
		maps = ask(search, tid, found);
		if (maps == -ESRCH)
			maps = 0;
	}
	closedir(tasks);
	return maps;
}

static int look_at(struct search *search, int pid)
{
	struct seal_proof found;
	int maps = ask(search, pid, &found), error;

	if (maps == -ESRCH && !exists(pid))
		return 0;
	if (!maps && !found.memory)
		maps = look_at_threads(search, pid, &found);
	error = count(search, &found);
	return error ? error : note(search, pid, maps);
}

static int look_at_all(struct search *search)
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
		for (; known < pids.count && !error; known++)
			error = look_at(search, pids.at[known]);
		if (error)
			break;
	}
	free(pids.at);
	return error;
}

int64_t seal_held(int held, int alive, int fd, const struct seal_description *description,
		  uint64_t start, uint64_t length, struct seal_held **out, int *unseen)
{
	struct walk_rows rows = {.size = sizeof(**out)};
	struct search search = {
		.program = held,
		.question =
			{
				.fd = fd,
				.description = *description,
				.start = start,
				.end = length > UINT64_MAX - start ? UINT64_MAX : start + length,
			},
		.rows = &rows,
	};
	struct seal_proof total = search.question;
	int error = look_at_all(&search);

	/* After the look: what is gone by now was nowhere when it was counted. */
	if (!error && seal_proof_run(alive, &total) < 0)
		error = -EAGAIN;
	free(search.memories.at);
	free(search.tables.at);
	*unseen = search.unknown && (error || total.count > search.references);
	*out = (struct seal_held *)(void *)rows.at;
	if (error) {
		free(rows.at);
		*out = NULL;
	}
	return error ? error : (int64_t)rows.count;
}

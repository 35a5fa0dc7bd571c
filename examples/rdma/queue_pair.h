/* One reliable queue pair, and the little that two ends must tell each other to connect theirs. */
#ifndef QUEUE_PAIR_H
#define QUEUE_PAIR_H

#include <infiniband/verbs.h>
#include <stdint.h>

struct queue_pair {
	struct ibv_context *context;
	struct ibv_pd *domain;
	struct ibv_cq *completions;
	struct ibv_qp *pair;
};

/* What one end tells the other; remote_* only matter when it comes from the target. */
struct endpoint {
	uint32_t number;
	uint32_t remote_key;
	uint64_t remote_address, remote_length;
	union ibv_gid gid;
};

/* All end the program with a message when they fail: there is nothing to go on with. */
void queue_pair_open(struct queue_pair *qp, struct endpoint *ours);
void queue_pair_connect(struct queue_pair *qp, const struct endpoint *theirs);
void queue_pair_close(struct queue_pair *qp);
void die(const char *what);

#endif

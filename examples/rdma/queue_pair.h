/* Reliable queue pairs, and the little that two ends must tell each other to connect theirs. */
#ifndef QUEUE_PAIR_H
#define QUEUE_PAIR_H

#include <infiniband/verbs.h>
#include <stdint.h>

/* What all queue pairs of a program share. */
struct adapter {
	struct ibv_context *context;
	struct ibv_pd *domain;
	struct ibv_cq *completions;
	union ibv_gid gid;
	int gid_index;
};

/* What one end tells the other; remote_* only matter when it comes from the target. */
struct endpoint {
	uint32_t number;
	uint32_t remote_key;
	uint64_t remote_address, remote_length;
	union ibv_gid gid;
};

/* Ends the program with a message when it fails: there is nothing to go on with. */
void adapter_open(struct adapter *adapter);
/* Every queue pair must have been destroyed before (ibv_destroy_qp). */
void adapter_close(struct adapter *adapter);
/* A queue pair for one peer, and what the peer must know of it. NULL, with errno, when it fails. */
struct ibv_qp *queue_pair_open(struct adapter *adapter, struct endpoint *ours);
/* 0, or -1 with errno. */
int queue_pair_connect(struct adapter *adapter, struct ibv_qp *pair, const struct endpoint *theirs);
void die(const char *what);

#endif

#include "queue_pair.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT 1

void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/* RoCE v2 over IPv4: the address is in the last four bytes of the GID. */
static int find_gid(struct ibv_context *context, union ibv_gid *gid)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};

	for (int index = 0; ibv_query_gid(context, PORT, index, gid) == 0; index++)
		if (memcmp(gid->raw, mapped, sizeof(mapped)) == 0)
			return index;
	errno = EADDRNOTAVAIL;
	die("an IPv4 address on the RDMA device");
	return -1;
}

void adapter_open(struct adapter *adapter)
{
	struct ibv_device **devices = ibv_get_device_list(NULL);

	if (!devices || !devices[0])
		die("an RDMA device");
	adapter->context = ibv_open_device(devices[0]);
	if (!adapter->context)
		die("ibv_open_device");
	ibv_free_device_list(devices);
	adapter->domain = ibv_alloc_pd(adapter->context);
	adapter->completions = ibv_create_cq(adapter->context, 16, NULL, NULL, 0);
	if (!adapter->domain || !adapter->completions)
		die("ibv_alloc_pd, ibv_create_cq");
	adapter->gid_index = find_gid(adapter->context, &adapter->gid);
}

void adapter_close(struct adapter *adapter)
{
	ibv_destroy_cq(adapter->completions);
	ibv_dealloc_pd(adapter->domain);
	ibv_close_device(adapter->context);
}

struct ibv_qp *queue_pair_open(struct adapter *adapter, struct endpoint *ours)
{
	struct ibv_qp_init_attr init = {
		.send_cq = adapter->completions,
		.recv_cq = adapter->completions,
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1},
	};
	struct ibv_qp_attr attributes = {
		.qp_state = IBV_QPS_INIT,
		.port_num = PORT,
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
	};
	struct ibv_qp *pair = ibv_create_qp(adapter->domain, &init);

	if (!pair)
		return NULL;
	if (ibv_modify_qp(pair, &attributes,
			  IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)) {
		ibv_destroy_qp(pair);
		return NULL;
	}
	memset(ours, 0, sizeof(*ours));
	ours->number = pair->qp_num;
	ours->gid = adapter->gid;
	return pair;
}

int queue_pair_connect(struct adapter *adapter, struct ibv_qp *pair, const struct endpoint *theirs)
{
	struct ibv_qp_attr ready_to_receive = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = IBV_MTU_1024,
		.dest_qp_num = theirs->number,
		.max_dest_rd_atomic = 1,
		.min_rnr_timer = 12,
		.ah_attr =
			{
				.is_global = 1,
				.port_num = PORT,
				.grh = {.dgid = theirs->gid,
					.hop_limit = 64,
					.sgid_index = (uint8_t)adapter->gid_index},
			},
	};
	struct ibv_qp_attr ready_to_send = {
		.qp_state = IBV_QPS_RTS,
		.timeout = 18,
		.retry_cnt = 7,
		.rnr_retry = 7,
		.max_rd_atomic = 1,
	};

	if (ibv_modify_qp(pair, &ready_to_receive,
			  IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				  IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
		return -1;
	return ibv_modify_qp(pair, &ready_to_send,
			     IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
				     IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC)
		       ? -1
		       : 0;
}

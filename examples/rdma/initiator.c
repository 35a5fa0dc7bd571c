/* initiator SOCKET OFFSET TEXT: writes TEXT into the target's sealed file by RDMA WRITE. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "queue_pair.h"

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die(path);
	return fd;
}

static void rdma_write(struct adapter *adapter, struct ibv_qp *pair, const struct endpoint *target,
		       uint64_t offset, struct ibv_mr *source)
{
	struct ibv_sge part = {(uint64_t)source->addr, (uint32_t)source->length, source->lkey};
	struct ibv_send_wr *bad,
		work = {
			.sg_list = &part,
			.num_sge = 1,
			.opcode = IBV_WR_RDMA_WRITE,
			.send_flags = IBV_SEND_SIGNALED,
			.wr.rdma = {target->remote_address + offset, target->remote_key},
		};
	struct ibv_wc done;
	int n;

	if (ibv_post_send(pair, &work, &bad))
		die("ibv_post_send");
	while ((n = ibv_poll_cq(adapter->completions, 1, &done)) == 0)
		usleep(1000);
	if (n < 0 || done.status != IBV_WC_SUCCESS) {
		fprintf(stderr, "RDMA WRITE: %s\n",
			n < 0 ? "no completion" : ibv_wc_status_str(done.status));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct endpoint ours, target;
	struct adapter adapter;
	struct ibv_qp *pair;
	struct ibv_mr *source;
	int fd;

	if (argc != 4) {
		fprintf(stderr, "usage: %s SOCKET OFFSET TEXT\n", argv[0]);
		return 2;
	}
	fd = connect_to(argv[1]);
	adapter_open(&adapter);
	pair = queue_pair_open(&adapter, &ours);
	if (!pair)
		die("a queue pair");
	source = ibv_reg_mr(adapter.domain, argv[3], strlen(argv[3]), IBV_ACCESS_LOCAL_WRITE);
	if (!source)
		die("ibv_reg_mr");
	if (send(fd, &ours, sizeof(ours), 0) < 0 ||
	    recv(fd, &target, sizeof(target), 0) != (ssize_t)sizeof(target))
		die("the target's answer");
	if (queue_pair_connect(&adapter, pair, &target) < 0)
		die("connecting the queue pair");
	rdma_write(&adapter, pair, &target, strtoull(argv[2], NULL, 0), source);
	printf("written\n");
	ibv_dereg_mr(source);
	ibv_destroy_qp(pair);
	adapter_close(&adapter);
	close(fd);
	return 0;
}

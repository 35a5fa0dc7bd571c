/* What the server and its clients say to each other: one SOCK_SEQPACKET message each. A token stands for
 * what SMB Direct calls a steering tag: it is good as long as the region behind it is sealed. */
#ifndef REGIONS_H
#define REGIONS_H

#include <stdint.h>

#define REGION_SIZE (256u << 10)
#define REGIONS 64
#define DATA_MAX 4096

enum message_kind {
	/* of the client */
	MESSAGE_WRITE = 1, /* data to `offset` of its region, by `token` */
	MESSAGE_READ,
	/* of the server */
	MESSAGE_DONE,  /* of a request: `status` 0 or -errno, -ESTALE: the token is not good */
	MESSAGE_READY, /* the region is sealed: use `token` */
	MESSAGE_BREAK, /* somebody wants to change the file there: `token` is not good any more */
};

struct message {
	uint32_t kind;
	uint32_t region;
	uint32_t token;
	int32_t status;
	uint32_t offset;
	uint32_t length;
	char data[DATA_MAX];
};

#endif

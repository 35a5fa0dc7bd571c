/* What libseal's files share. */
#ifndef LIBSEAL_INTERNAL_H
#define LIBSEAL_INTERNAL_H

#include <errno.h>

#include "abi/seal_control.h"
#include "abi/seal_ring_geometry.h"
#include "seal.h"
#include "seal_ring.h"

#define FILES_MAX SEAL_CONTROL_FILES
#define MESSAGE_MAX 65536
#define ID_SIZE (SEAL_CONTROL_ID + 1)	   /* with NUL */
#define CLIENT_SECOND UINT64_C(1000000000) /* ns */

enum descriptor { MEMORY, TABLE, KICK, BELL, DESCRIPTORS };

struct seal_client {
	struct seal_options options;
	char socket_path[108];
	int socket; /* -1: the service does not answer */
	int fds[DESCRIPTORS];
	int poll;	      /* an epoll descriptor: the bell, the socket, and `self` */
	int self;	      /* an eventfd: something is left for seal_dispatch */
	unsigned char *alive; /* a page that fork wipes */
	/* The ring. What we wrote there ourselves is not read back. */
	struct seal_mailbox *mailbox;
	size_t memory_size, table_size;
	char *commands;
	struct seal_ring_event *events;
	char *data;
	const struct seal_slot *slots;
	struct ring_geometry command_ring, event_ring; /* in bytes; in events */
	uint32_t data_size, slot_count;
	uint32_t head, reaped, event_tail;
	uint64_t next_id;
	uint32_t spin; /* looks before the next sleep */
	uint32_t ring;
	char secret[17];
	char file_ids[FILES_MAX][ID_SIZE];
	uint64_t next_request;
	char failure[256];
	/* Requests and answers of the control socket (abi/seal_control.h). */
	char message[MESSAGE_MAX] __attribute__((aligned(8)));
};

/* 0, or -EOWNERDEAD: we are a child of the client's owner. */
static inline int client_check(const struct seal_client *client)
{
	return *client->alive ? 0 : -EOWNERDEAD;
}

uint64_t client_now_ns(void);

/* control.c: the socket. Failures leave their text in client->failure. */
int control_connect(struct seal_client *client);
void control_close(struct seal_client *client);
/* Makes a ring, or attaches to options.ring; descriptors are stored. */
int control_attach(struct seal_client *client);
/* Reads and forgets what the service pushes; notices its end. */
void control_drain(struct seal_client *client);

/* What seal_pi_open asks for. */
struct pi_opening {
	int file, by_ring;
	size_t bytes;
	const char *profile;
};
#define PI_FACTS SEAL_CONTROL_FACTS
/* The two descriptors of a PI channel (its socket and its memory), and the fields of struct seal_pi_facts. */
int control_pi_channel(struct seal_client *client, const struct pi_opening *opening, int fds[2],
		       uint32_t facts[PI_FACTS]);

/* ring.c: commands and completions */
/* An entry of our ring, filled; its place, or -EAGAIN. Of PI commands, here and below, `command` is the head of
 * a struct seal_pi_command. */
int64_t ring_put(struct seal_client *client, const struct seal_command *command, uint16_t flags);
/* Have the keeper look, if it sleeps. */
int ring_kick(struct seal_client *client);
/* Give back the entries that are through. */
void ring_reap(struct seal_client *client);
/* Wait until the entry is done, and copy it. 0, -ETIMEDOUT or -EPIPE. */
int ring_wait(struct seal_client *client, uint32_t place, struct seal_command *out);
/* All three: send a command and wait for its end. 0 or -errno, that of the command too. */
int ring_carry_out(struct seal_client *client, struct seal_command *command);
/* From now on the bell rings; what came before that is left for seal_dispatch. */
void ring_rest(struct seal_client *client);

#define ENTRY_WAITED 1u	   /* somebody waits for it: not for the callback */
#define ENTRY_DELIVERED 2u /* whoever asked has the answer */

#endif

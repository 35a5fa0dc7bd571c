/* A client of the region server: it writes to its region as fast as it can, pauses while the region is not
 * sealed, and tells of both. It ends when its standard input does.
 *
 *	./client SOCKET
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "regions.h"

static int server;
static uint32_t token;	/* 0: the region is not sealed */
static unsigned pauses; /* how often it was asked back */

static int receive(struct message *message)
{
	return recv(server, message, sizeof(*message), 0) == sizeof(*message) ? 0 : -1;
}

static void note(const struct message *message)
{
	token = message->kind == MESSAGE_READY ? message->token : 0;
	pauses += message->kind == MESSAGE_BREAK;
	printf("region %u: %s\n", message->region, token ? "sealed" : "asked back");
	fflush(stdout);
}

/* The answer to a request; what the server tells meanwhile is noted. */
static int ask(struct message *message)
{
	message->token = token;
	if (send(server, message, sizeof(*message), MSG_NOSIGNAL) < 0)
		return -1;
	while (receive(message) == 0) {
		if (message->kind == MESSAGE_DONE)
			return 0;
		note(message);
	}
	return -1;
}

static int stopped(void)
{
	struct pollfd input = {.fd = 0, .events = POLLIN};

	return poll(&input, 1, 0) > 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	unsigned long writes = 0, stale = 0;
	struct message message;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", argc > 1 ? argv[1] : "");
	server = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof(address))) {
		perror("client: connect");
		return 1;
	}
	while (!token || !stopped()) {
		if (!token) {
			if (receive(&message))
				break;
			note(&message);
			continue;
		}
		message = (struct message){.kind = MESSAGE_WRITE, .length = DATA_MAX};
		memset(message.data, (int)(writes % 251), DATA_MAX);
		if (ask(&message))
			break;
		if (message.status == 0)
			writes++;
		else if (message.status == -ESTALE)
			stale++;
		else
			break;
	}
	message = (struct message){.kind = MESSAGE_READ, .length = DATA_MAX};
	if (!token || ask(&message) || message.status ||
	    (unsigned char)message.data[0] != (writes - 1) % 251) {
		fprintf(stderr, "client: what was written is not there\n");
		return 1;
	}
	printf("region %u: %lu writes, %u pauses\n", message.region, writes, pauses);
	return 0;
}

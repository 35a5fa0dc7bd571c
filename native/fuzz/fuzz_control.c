/* libseal's reading of what a service answers: any datagrams. The first byte chooses the request, the
 * input is cut at each 0xff into datagrams, and what begins with an 'A' gets the head of an answer. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

#define MESSAGES 4

static void send_one(int socket, const uint8_t *data, size_t size)
{
	struct seal_control_answer head = {
		.head = {.magic = SEAL_CONTROL_MAGIC,
			 .version = SEAL_CONTROL_VERSION,
			 .request = 1},
	};
	char *copy = malloc(sizeof(head) + size);

	if (size && data[0] == 'A') {
		memcpy(copy, &head, sizeof(head));
		memcpy(copy + sizeof(head), data + 1, size - 1);
		size += sizeof(head) - 1;
	} else {
		memcpy(copy, data, size);
	}
	if (send(socket, copy, size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		size = 0; /* too many: those before it will do */
	free(copy);
}

static void look(struct seal_client *client, int what)
{
	struct seal_file_options options = {.size = sizeof(options), .tag = "tag"};
	const struct pi_opening opening = {.file = 3, .profile = "profile"};
	uint32_t facts[PI_FACTS];
	int fds[2], file;

	memset(client->file_ids[3], 'a', ID_SIZE - 1);
	switch (what % 4) {
	case 0:
		if (control_attach(client) == 0) /* without its descriptors */
			__builtin_trap();
		return;
	case 1:
		file = seal_register(client, -1, &options);
		if (file >= FILES_MAX)
			__builtin_trap();
		return;
	case 2:
		seal_unregister(client, 3);
		return;
	default:
		if (control_pi_channel(client, &opening, fds, facts) == 0)
			__builtin_trap();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct seal_client *client = calloc(1, sizeof(*client));
	unsigned char alive = 1;
	int pair[2];

	if (!client || size < 1 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0) {
		free(client);
		return 0;
	}
	for (size_t at = 1, sent = 0; at < size && sent < MESSAGES; sent++) {
		const uint8_t *end = memchr(data + at, 0xff, size - at);
		size_t length = end ? (size_t)(end - (data + at)) : size - at;

		send_one(pair[0], data + at, length);
		at += length + 1;
	}
	shutdown(pair[0], SHUT_WR);
	client->socket = pair[1];
	client->alive = &alive;
	look(client, data[0]);
	for (int i = 0; i < FILES_MAX; i++)
		if (client->file_ids[i][ID_SIZE - 1])
			__builtin_trap();
	if (memchr(client->failure, '\0', sizeof(client->failure)) == NULL)
		__builtin_trap();
	if (client->socket >= 0)
		close(client->socket);
	close(pair[0]);
	free(client);
	return 0;
}

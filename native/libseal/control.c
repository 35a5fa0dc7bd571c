/* The control socket: attaching and registering (abi/seal_control.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "internal.h"

static int fail(struct seal_client *client, int error, const char *what)
{
	snprintf(client->failure, sizeof(client->failure), "%s: %s", what, strerror(-error));
	return error;
}

int control_connect(struct seal_client *client)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	/* Of less than a microsecond nothing would be left, which means for ever. */
	uint64_t wait = client->options.timeout < 1000 ? 1000 : client->options.timeout;
	struct timeval patience = {.tv_sec = (time_t)(wait / CLIENT_SECOND),
				   .tv_usec = (suseconds_t)(wait % CLIENT_SECOND / 1000)};
	struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
	int error, fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return fail(client, -errno, "socket");
	memcpy(address.sun_path, client->socket_path, sizeof(address.sun_path));
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
	    epoll_ctl(client->poll, EPOLL_CTL_ADD, fd, &event) < 0) {
		error = fail(client, -errno, client->socket_path);
		close(fd);
		return error;
	}
	client->socket = fd;
	return 0;
}

void control_close(struct seal_client *client)
{
	if (client->socket >= 0)
		close(client->socket); /* leaves the epoll set with it */
	client->socket = -1;
}

static int lost(struct seal_client *client, int error)
{
	/* A time-out leaves an answer on the way: with it the next would be mistaken. */
	control_close(client);
	return fail(client, error,
		    error == -EMFILE ? "the answer's descriptors (RLIMIT_NOFILE)"
				     : "the service does not answer");
}

static int send_request(struct seal_client *client, size_t size, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {client->message, size};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (fd >= 0) {
		memset(&control, 0, sizeof(control));
		message.msg_control = &control;
		message.msg_controllen = sizeof(control);
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	return sendmsg(client->socket, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void close_all(int *fds, int count)
{
	for (int i = 0; i < count; i++) {
		close(fds[i]);
		fds[i] = -1;
	}
}

/* One message; its size, 0 at the end, or -errno. At most DESCRIPTORS are stored. */
static ssize_t receive(struct seal_client *client, int flags, int *fds, int *count)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int) * DESCRIPTORS)];
	} control;
	struct iovec part = {client->message, sizeof(client->message)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	ssize_t n;

	*count = 0;
	do
		n = recvmsg(client->socket, &message, MSG_CMSG_CLOEXEC | flags);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
		size_t size = header->cmsg_len - CMSG_LEN(0);

		memcpy(fds, CMSG_DATA(header), size);
		*count = (int)(size / sizeof(int));
	}
	if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
		close_all(fds, *count);
		*count = 0;
		/* There is room for all that an answer may carry: what is missing had no number. */
		return message.msg_flags & MSG_TRUNC ? -EMSGSIZE : -EMFILE;
	}
	return n;
}

/* The text that follows a message of `size` bytes, as a failure. */
static int refused(struct seal_client *client, size_t size)
{
	const struct seal_control_answer *answer = (const void *)client->message;

	snprintf(client->failure, sizeof(client->failure), "%.*s", (int)(size - sizeof(*answer)),
		 client->message + sizeof(*answer));
	return answer->error > 0 && answer->error < 4096 ? -answer->error : -EIO;
}

/* What the service pushes is JSON, and passed over. */
static int is_answer(const struct seal_client *client, size_t size)
{
	const struct seal_control_head *head = (const void *)client->message;

	return size >= sizeof(struct seal_control_answer) && head->magic == SEAL_CONTROL_MAGIC &&
	       (head->request == client->next_request || head->request == 0);
}

/* A refusal in JSON, of no request: this connection is not served, or the service is older than these
 * messages. It is shown as it is. */
static int is_turned_away(const struct seal_client *client, size_t size)
{
	static const char no_request[] = "\"id\":null";

	return memmem(client->message, size, no_request, sizeof(no_request) - 1) != NULL;
}

static int turned_away(struct seal_client *client, size_t size)
{
	char text[200];

	snprintf(text, sizeof(text), "%.*s", (int)size, client->message);
	control_close(client);
	return fail(client, -ECONNREFUSED, text);
}

/* Waits for the answer to the request that was sent; its size. */
static ssize_t await(struct seal_client *client, int *fds, int *count)
{
	int resets = 0;

	for (;;) {
		ssize_t n = receive(client, 0, fds, count);

		/* What the service closed with our request unread: first this, then what it said. */
		if (n == -ECONNRESET && !resets++)
			continue;
		if (n <= 0)
			return lost(client, n == 0 ? -ECONNRESET : (int)n);
		if (is_answer(client, (size_t)n))
			return n;
		close_all(fds, *count);
		if (is_turned_away(client, (size_t)n))
			return turned_away(client, (size_t)n);
	}
}

/* Send the request of `size` bytes in client->message, and wait for its answer, which is there then,
 * of at least `least` bytes. */
static int ask(struct seal_client *client, size_t size, int fd, size_t least, int *fds, int *count)
{
	int error;
	ssize_t n;

	if (client->socket < 0)
		return fail(client, -ENOTCONN, "the service");
	error = send_request(client, size, fd);
	if (error && error != -EPIPE) /* before its end the service may have said why */
		return lost(client, error);
	n = await(client, fds, count);
	if (n < 0)
		return (int)n;
	if (((const struct seal_control_answer *)(const void *)client->message)->error)
		error = refused(client, (size_t)n);
	else
		error = (size_t)n < least ? fail(client, -EBADMSG, "the answer") : 0;
	if (error)
		close_all(fds, *count);
	return error;
}

/* The next request, zeroed but for its head, in client->message. */
static void *begin(struct seal_client *client, enum seal_control_op op, size_t size)
{
	struct seal_control_head *head = (void *)client->message;

	memset(client->message, 0, size);
	*head = (struct seal_control_head){
		.magic = SEAL_CONTROL_MAGIC,
		.version = SEAL_CONTROL_VERSION,
		.op = (uint16_t)op,
		.request = ++client->next_request,
	};
	return client->message;
}

/* Append a text to a request of `size` bytes; the new size, or 0 when it does not fit. */
static size_t append(struct seal_client *client, size_t size, const char *text)
{
	size_t length = text ? strlen(text) : 0;

	if (length > sizeof(client->message) - size)
		return 0;
	memcpy(client->message + size, text ? text : "", length);
	return size + length;
}

static void keep_id(char id[ID_SIZE], const char from[SEAL_CONTROL_ID])
{
	memcpy(id, from, SEAL_CONTROL_ID);
	id[SEAL_CONTROL_ID] = '\0';
}

static void keep_ring(struct seal_client *client)
{
	const struct seal_control_attached *attached = (const void *)client->message;

	client->ring = attached->ring;
	snprintf(client->secret, sizeof(client->secret), "%016llx",
		 (unsigned long long)attached->secret);
	for (int i = 0; i < FILES_MAX; i++)
		keep_id(client->file_ids[i], attached->files[i]);
}

int control_attach(struct seal_client *client)
{
	const struct seal_options *options = &client->options;
	struct seal_control_attach *request = begin(client, SEAL_CONTROL_ATTACH, sizeof(*request));
	int fds[DESCRIPTORS], count, error;

	request->slots = options->slots;
	request->commands = options->commands;
	request->events = options->events;
	request->data = options->data;
	if (options->secret[0]) {
		request->ring = options->ring;
		request->secret = strtoull(options->secret, NULL, 16);
	}
	error = ask(client, sizeof(*request), -1, sizeof(struct seal_control_attached), fds,
		    &count);
	if (error)
		return error;
	if (count != DESCRIPTORS) {
		close_all(fds, count);
		return fail(client, -EBADMSG, "the answer");
	}
	keep_ring(client);
	memcpy(client->fds, fds, sizeof(fds));
	return 0;
}

/* The option that there is not; NULL: all are known. 0 is the service's default. */
static const char *unknown_option(const struct seal_file_options *options)
{
	if (options->iomode > SEAL_RW)
		return "iomode";
	if (options->kind > SEAL_KIND_EXCLUSIVE)
		return "kind";
	if (options->conflict > SEAL_CONFLICT_REFUSE)
		return "conflict";
	if (options->fence > SEAL_FENCE_KILL)
		return "fence";
	return options->prepare >= SEAL_PREPARE_ALIGN << 1 ? "prepare" : NULL;
}

static size_t put_options(struct seal_client *client, const struct seal_file_options *options)
{
	struct seal_control_register *request =
		begin(client, SEAL_CONTROL_REGISTER, sizeof(*request));

	request->ring = client->ring;
	request->offset = options->offset;
	request->length = options->length;
	request->grace = options->grace;
	request->iomode = options->iomode;
	request->kind = options->kind;
	request->conflict = options->conflict;
	request->fence = options->fence;
	request->prepare = options->prepare;
	return append(client, sizeof(*request), options->tag);
}

int seal_register(struct seal_client *client, int fd, const struct seal_file_options *given)
{
	const struct seal_control_registered *answer = (const void *)client->message;
	struct seal_file_options options = {0};
	int fds[DESCRIPTORS], count, error = client_check(client);
	const char *unknown;
	size_t size;

	if (error)
		return error;
	if (given)
		memcpy(&options, given,
		       given->size < sizeof(options) ? given->size : sizeof(options));
	unknown = unknown_option(&options);
	if (unknown)
		return fail(client, -EINVAL, unknown);
	size = put_options(client, &options);
	if (!size)
		return fail(client, -EMSGSIZE, "the tag");
	error = ask(client, size, fd, sizeof(*answer), fds, &count);
	if (error)
		return error;
	close_all(fds, count);
	if (answer->file >= FILES_MAX)
		return fail(client, -EBADMSG, "the answer");
	keep_id(client->file_ids[answer->file], answer->seal);
	return (int)answer->file;
}

int seal_unregister(struct seal_client *client, int file)
{
	struct seal_control_return *request;
	int fds[DESCRIPTORS], count, error = client_check(client);

	if (error)
		return error;
	if (file < 0 || file >= FILES_MAX || !client->file_ids[file][0])
		return -EBADF;
	request = begin(client, SEAL_CONTROL_RETURN, sizeof(*request));
	memcpy(request->seal, client->file_ids[file], SEAL_CONTROL_ID);
	error = ask(client, sizeof(*request), -1, sizeof(struct seal_control_answer), fds, &count);
	if (error)
		return error;
	close_all(fds, count);
	client->file_ids[file][0] = '\0';
	return 0;
}

void control_drain(struct seal_client *client)
{
	int fds[DESCRIPTORS], count;

	while (client->socket >= 0) {
		ssize_t n = receive(client, MSG_DONTWAIT, fds, &count);

		close_all(fds, count);
		if (n == -EAGAIN)
			return;
		if (n == 0 || (n < 0 && n != -EMSGSIZE && n != -EMFILE))
			control_close(client);
	}
}

int control_pi_channel(struct seal_client *client, const struct pi_opening *opening, int fds[2],
		       uint32_t facts[PI_FACTS])
{
	const struct seal_control_pi_opened *answer = (const void *)client->message;
	struct seal_control_pi_channel *request;
	int all[DESCRIPTORS], count, error = client_check(client), file = opening->file;
	size_t size;

	if (error)
		return error;
	if (file < 0 || file >= FILES_MAX || !client->file_ids[file][0])
		return -EBADF;
	if (opening->by_ring && !(client->mailbox->features & SEAL_FEATURE_PI))
		return fail(client, -EOPNOTSUPP, "PI commands of the keeper");
	request = begin(client, SEAL_CONTROL_PI_CHANNEL, sizeof(*request));
	memcpy(request->seal, client->file_ids[file], SEAL_CONTROL_ID);
	request->bytes = opening->bytes;
	request->ring = opening->by_ring ? 1 : 0;
	size = append(client, sizeof(*request), opening->profile);
	if (!size)
		return fail(client, -EMSGSIZE, "the profile");
	error = ask(client, size, -1, sizeof(*answer), all, &count);
	if (error)
		return error;
	if (count != 2) {
		close_all(all, count);
		return fail(client, -EBADMSG, "the answer");
	}
	memcpy(facts, answer->facts, sizeof(answer->facts));
	memcpy(fds, all, 2 * sizeof(*fds));
	return 0;
}

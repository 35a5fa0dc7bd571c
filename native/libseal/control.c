/* The control socket: attaching and registering, in JSON (docs of the service: sealsvc/protocol/rings.py). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "codes.h"
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

static int error_of(const char *code)
{
	for (size_t i = 0; i < sizeof(seal_codes) / sizeof(seal_codes[0]); i++)
		if (strcmp(seal_codes[i].code, code) == 0)
			return -seal_codes[i].error;
	return -EIO;
}

static int refused(struct seal_client *client, struct json answer)
{
	char code[40] = "", message[200] = "";
	struct json value;

	if (json_find(answer, "code", &value) == 0)
		json_string(value, code, sizeof(code));
	if (json_find(answer, "message", &value) == 0)
		json_string(value, message, sizeof(message));
	snprintf(client->failure, sizeof(client->failure), "%s: %s", code, message);
	return error_of(code);
}

/* 1 when the message is the answer to our request; pushes and older answers are passed over. One whose
 * id is null tells why nothing that we send is looked at. */
static int is_answer(struct json message, uint64_t request)
{
	static const char null[] = "null";
	struct json id;
	uint64_t number;

	if (json_find(message, "id", &id) < 0)
		return 0;
	if ((size_t)(id.end - id.at) == sizeof(null) - 1 &&
	    memcmp(id.at, null, sizeof(null) - 1) == 0)
		return 1;
	return json_number(id, &number) == 0 && number == request;
}

/* Send what stands in client->message, and wait for its answer: its result. */
static int ask(struct seal_client *client, struct json_text *text, int fd, struct json *result,
	       int *fds, int *count)
{
	uint64_t request = client->next_request;
	struct json answer;
	char reply[16];
	int error;

	if (text->used > text->room)
		return fail(client, -EMSGSIZE, "the request");
	if (client->socket < 0)
		return fail(client, -ENOTCONN, "the service");
	error = send_request(client, text->used, fd);
	if (error && error != -EPIPE) /* before its end the service may have said why */
		return lost(client, error);
	do {
		ssize_t n = receive(client, 0, fds, count);

		if (n <= 0)
			return lost(client, n == 0 ? -ECONNRESET : (int)n);
		answer = (struct json){client->message, client->message + n};
		if (is_answer(answer, request))
			break;
		close_all(fds, *count);
	} while (1);
	if (json_find(answer, "reply", result) < 0 ||
	    json_string(*result, reply, sizeof(reply)) < 0)
		error = fail(client, -EBADMSG, "the answer");
	else if (strcmp(reply, "answer") != 0)
		error = refused(client, answer);
	else if (json_find(answer, "result", result) < 0)
		error = fail(client, -EBADMSG, "the answer");
	if (error)
		close_all(fds, *count);
	return error;
}

static struct json_text begin(struct seal_client *client, const char *op)
{
	struct json_text text = {client->message, sizeof(client->message), 0};

	json_put(&text, "{\"op\":");
	json_put_string(&text, op);
	json_put(&text, ",\"id\":");
	json_put_number(&text, ++client->next_request);
	return text;
}

static void put_number(struct json_text *text, const char *name, uint64_t number)
{
	json_put(text, ",");
	json_put_string(text, name);
	json_put(text, ":");
	json_put_number(text, number);
}

static void put_string(struct json_text *text, const char *name, const char *string)
{
	if (!string)
		return;
	json_put(text, ",");
	json_put_string(text, name);
	json_put(text, ":");
	json_put_string(text, string);
}

static void keep_file(void *context, struct json name, struct json value)
{
	struct seal_client *client = context;
	uint64_t file;

	if (json_number(name, &file) == 0 && file < FILES_MAX)
		json_string(value, client->file_ids[file], ID_SIZE);
}

static int keep_ring(struct seal_client *client, struct json result)
{
	struct json value;
	uint64_t ring;

	if (json_find(result, "ring", &value) < 0 || json_number(value, &ring) < 0 ||
	    ring > UINT32_MAX || json_find(result, "secret", &value) < 0 ||
	    json_string(value, client->secret, sizeof(client->secret)) < 0 ||
	    json_find(result, "files", &value) < 0)
		return -EBADMSG;
	client->ring = (uint32_t)ring;
	memset(client->file_ids, 0, sizeof(client->file_ids));
	return json_each(value, keep_file, client);
}

int control_attach(struct seal_client *client)
{
	const struct seal_options *options = &client->options;
	struct json_text text = begin(client, "attach");
	int fds[DESCRIPTORS], count, error;
	struct json result;

	put_number(&text, "slots", options->slots);
	put_number(&text, "commands", options->commands);
	put_number(&text, "events", options->events);
	put_number(&text, "data", options->data);
	if (options->secret[0]) {
		put_number(&text, "ring", options->ring);
		put_string(&text, "secret", options->secret);
	}
	json_put(&text, "}");
	error = ask(client, &text, -1, &result, fds, &count);
	if (error)
		return error;
	if (count != DESCRIPTORS || keep_ring(client, result) < 0) {
		close_all(fds, count);
		return fail(client, -EBADMSG, "the answer");
	}
	memcpy(client->fds, fds, sizeof(fds));
	return 0;
}

/* The words of the service, by the enums of seal.h. 0 is the default, and NULL the service's. */
static const char *const kinds[] = {"shared", "shared", "exclusive"};
static const char *const conflicts[] = {NULL, "wait", "refuse"};
static const char *const fences[] = {NULL, "none", "signal", "kill"};
static const char *const preparations[] = {"allocate", "convert", "unshare", "align"};
static const char *const iomodes[] = {"rw", "read", "rw"};

#define COUNT(words) (sizeof(words) / sizeof((words)[0]))

/* The option that there is not; NULL: all are known. */
static const char *unknown_option(const struct seal_file_options *options)
{
	if (options->iomode >= COUNT(iomodes))
		return "iomode";
	if (options->kind >= COUNT(kinds))
		return "kind";
	if (options->conflict >= COUNT(conflicts))
		return "conflict";
	if (options->fence >= COUNT(fences))
		return "fence";
	return options->prepare >> COUNT(preparations) ? "prepare" : NULL;
}

static void put_preparations(struct json_text *text, uint32_t wanted)
{
	const char *before = ",\"prepare\":[";

	for (size_t i = 0; i < COUNT(preparations); i++)
		if (wanted >> i & 1) {
			json_put(text, before);
			json_put_string(text, preparations[i]);
			before = ",";
		}
	if (wanted)
		json_put(text, "]");
}

static void put_options(struct json_text *text, const struct seal_file_options *options)
{
	put_number(text, "offset", options->offset);
	if (options->length)
		put_number(text, "length", options->length);
	put_string(text, "iomode", iomodes[options->iomode]);
	put_string(text, "kind", kinds[options->kind]);
	put_string(text, "conflict", conflicts[options->conflict]);
	put_string(text, "fence", fences[options->fence]);
	put_string(text, "tag", options->tag);
	if (options->grace) {
		json_put(text, ",\"grace\":");
		json_put_seconds(text, options->grace);
	}
	put_preparations(text, options->prepare);
}

int seal_register(struct seal_client *client, int fd, const struct seal_file_options *given)
{
	struct seal_file_options options = {0};
	int fds[DESCRIPTORS], count, error = client_check(client);
	struct json_text text;
	struct json result, value;
	const char *unknown;
	uint64_t file;

	if (error)
		return error;
	if (given)
		memcpy(&options, given,
		       given->size < sizeof(options) ? given->size : sizeof(options));
	unknown = unknown_option(&options);
	if (unknown)
		return fail(client, -EINVAL, unknown);
	text = begin(client, "register");
	put_number(&text, "ring", client->ring);
	put_options(&text, &options);
	json_put(&text, "}");
	error = ask(client, &text, fd, &result, fds, &count);
	if (error)
		return error;
	close_all(fds, count);
	if (json_find(result, "file", &value) < 0 || json_number(value, &file) < 0 ||
	    file >= FILES_MAX || json_find(result, "seal.id", &value) < 0 ||
	    json_string(value, client->file_ids[file], ID_SIZE) < 0)
		return fail(client, -EBADMSG, "the answer");
	return (int)file;
}

int seal_unregister(struct seal_client *client, int file)
{
	int fds[DESCRIPTORS], count, error = client_check(client);
	struct json_text text;
	struct json result;

	if (error)
		return error;
	if (file < 0 || file >= FILES_MAX || !client->file_ids[file][0])
		return -EBADF;
	text = begin(client, "return");
	put_string(&text, "seal", client->file_ids[file]);
	json_put(&text, "}");
	error = ask(client, &text, -1, &result, fds, &count);
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

static int number_at(struct json object, const char *path, uint32_t *out)
{
	struct json value;
	uint64_t number;

	if (json_find(object, path, &value) < 0 || json_number(value, &number) < 0 ||
	    number > UINT32_MAX)
		return -EBADMSG;
	*out = (uint32_t)number;
	return 0;
}

static int read_facts(struct json result, uint32_t facts[PI_FACTS])
{
	/* In the order of struct seal_pi_facts. */
	static const char *const paths[PI_FACTS] = {"device.interval",	"device.metadata",
						    "device.pi_offset", "device.pi_size",
						    "device.ref_size",	"device.block"};
	int error = 0;

	for (int i = 0; !error && i < PI_FACTS; i++)
		error = number_at(result, paths[i], &facts[i]);
	return error;
}

int control_pi_channel(struct seal_client *client, const struct pi_opening *opening, int fds[2],
		       uint32_t facts[PI_FACTS])
{
	int all[DESCRIPTORS], count, error = client_check(client), file = opening->file;
	struct json_text text;
	struct json result;

	if (error)
		return error;
	if (file < 0 || file >= FILES_MAX || !client->file_ids[file][0])
		return -EBADF;
	if (opening->by_ring && !(client->mailbox->features & SEAL_FEATURE_PI))
		return fail(client, -EOPNOTSUPP, "PI commands of the keeper");
	text = begin(client, "pi-channel");
	put_string(&text, "seal", client->file_ids[file]);
	if (opening->bytes)
		put_number(&text, "bytes", opening->bytes);
	put_string(&text, "profile", opening->profile);
	json_put(&text, opening->by_ring ? ",\"ring\":true}" : "}");
	error = ask(client, &text, -1, &result, all, &count);
	if (error)
		return error;
	if (count != 2 || read_facts(result, facts) < 0) {
		close_all(all, count);
		return fail(client, -EBADMSG, "the answer");
	}
	memcpy(fds, all, 2 * sizeof(*fds));
	return 0;
}

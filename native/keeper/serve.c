/* Connections: reading requests and sending replies. */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "internal.h"

static int may_connect(int connection)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	return getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
	       peer.uid == geteuid();
}

static void accept_one(int epoll, int listener)
{
	struct epoll_event event = {.events = EPOLLIN};
	int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	if (connection < 0)
		return;
	event.data.fd = connection;
	if (!may_connect(connection) || epoll_ctl(epoll, EPOLL_CTL_ADD, connection, &event) < 0)
		close(connection);
}

/* Returns the datagram's size, 0 at the end of the connection; *fd is -1 or a descriptor of ours. */
static ssize_t receive(int connection, struct keeper_request *request, int *fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {request, sizeof(*request)};
	struct msghdr message = {
		.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	ssize_t n = recvmsg(connection, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	*fd = -1;
	if (n < 0)
		return n;
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(header), sizeof(*fd));
	return n;
}

static int reply_with(int connection, const struct keeper_reply *reply,
		      const struct keeper_names *names, const int *fds)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int) * KEEPER_BATCH)];
	} control;
	struct iovec parts[] = {
		{(void *)reply, sizeof(*reply)},
		{(void *)names, names ? sizeof(*names) : 0},
	};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};

	if (reply->count) {
		size_t size = sizeof(int) * reply->count;

		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(size);
		memset(&control, 0, sizeof(control));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(size);
		memcpy(CMSG_DATA(&control.header), fds, size);
	}
	return sendmsg(connection, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void hang_up(struct keeper *keeper, int connection)
{
	/* What its last owner guarded stays guarded, and what waits goes on waiting. */
	if (connection == keeper->owner) {
		keeper->owner = -1;
		outbox_open(&keeper->outbox, -1);
		if (keeper->gate)
			seal_gate_exempt(keeper->gate, 0);
	}
	close(connection);
}

static void greet(struct keeper *keeper, int connection, const struct keeper_request *request)
{
	struct keeper_greeting greeting;
	struct keeper_hello hello;

	memcpy(&hello, request, sizeof(hello));
	keeper_greet(keeper, connection, &hello, &greeting);
	if (send(connection, &greeting, sizeof(greeting), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		hang_up(keeper, connection);
}

static void serve_one(struct keeper *keeper, int connection)
{
	static struct keeper_names names;
	struct keeper_request request;
	struct keeper_reply reply;
	int fds[KEEPER_BATCH], fd;
	ssize_t n = receive(connection, &request, &fd);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n == (ssize_t)sizeof(struct keeper_hello) && fd < 0) {
		greet(keeper, connection, &request);
		return;
	}
	if (n != (ssize_t)sizeof(request)) {
		if (fd >= 0)
			close(fd);
		hang_up(keeper, connection);
		return;
	}
	request.name[KEEPER_NAME - 1] = '\0';
	outbox_flush(&keeper->outbox);
	keeper_answer(keeper, connection, &request, fd, &reply, fds, &names);
	n = reply_with(connection, &reply, request.op == KEEPER_KEPT ? &names : NULL, fds);
	/* The others stay the keeper's. */
	if (request.op == KEEPER_SNAPSHOT || request.op == KEEPER_RING)
		for (uint64_t i = 0; i < reply.count; i++)
			close(fds[i]);
	if (n < 0)
		hang_up(keeper, connection);
}

int keeper_serve(struct keeper *keeper, const int listener[2])
{
	struct epoll_event event = {.events = EPOLLIN};
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0)
		return -errno;
	for (int i = 0; i < 2; i++) {
		event.data.fd = listener[i];
		if (listener[i] >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, listener[i], &event) < 0)
			return -errno;
	}
	while (!keeper->leaving) {
		/* Reports that did not fit into the socket are tried again soon. */
		int waiting = __atomic_load_n(&keeper->outbox.count, __ATOMIC_RELAXED) != 0;

		if (epoll_wait(epoll, &event, 1, waiting ? 2 : 500) <= 0) {
			outbox_flush(&keeper->outbox);
			continue;
		}
		if (event.data.fd == listener[0] || event.data.fd == listener[1])
			accept_one(epoll, event.data.fd);
		else
			serve_one(keeper, event.data.fd);
	}
	close(epoll);
	return 0;
}

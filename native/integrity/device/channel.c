#include "channel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transfer.h"

struct seal_channel {
	struct pi_target target;
	int socket, memory, stop;
	int stopped; /* read and written atomically */
	uint64_t size;
	unsigned char *shared;
};

static int map_memory(struct seal_channel *channel)
{
	void *at =
		mmap(NULL, channel->size, PROT_READ | PROT_WRITE, MAP_SHARED, channel->memory, 0);

	if (at == MAP_FAILED)
		return -errno;
	channel->shared = at;
	return 0;
}

static void release(struct seal_channel *channel)
{
	pi_target_release(&channel->target);
	if (channel->shared)
		munmap(channel->shared, channel->size);
	if (channel->stop >= 0)
		close(channel->stop);
	free(channel);
}

int seal_channel_open(const struct seal_channel_options *options, struct seal_channel **out)
{
	struct seal_channel *channel = calloc(1, sizeof(*channel));
	int error;

	*out = NULL;
	if (!channel)
		return -ENOMEM;
	channel->socket = options->socket;
	channel->memory = options->memory;
	channel->size = options->size;
	channel->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = channel->stop < 0 ? -errno : map_memory(channel);
	if (!error)
		error = pi_target_open(&channel->target, options);
	if (error) {
		release(channel);
		return error;
	}
	*out = channel;
	return 0;
}

void seal_channel_close(struct seal_channel *channel)
{
	close(channel->socket);
	close(channel->memory);
	close(channel->target.device);
	release(channel);
}

void seal_channel_stop(struct seal_channel *channel)
{
	__atomic_store_n(&channel->stopped, 1, __ATOMIC_RELEASE);
	eventfd_write(channel->stop, 1);
}

static int is_stopped(const struct seal_channel *channel)
{
	return __atomic_load_n(&channel->stopped, __ATOMIC_ACQUIRE);
}

static int lies_inside(uint64_t start, uint64_t length, uint64_t end)
{
	return start <= end && length <= end - start;
}

/* Where the request's data and PI lie; EINVAL when they are not both inside and apart. */
static int place(const struct seal_channel *channel, const struct seal_channel_request *request,
		 struct pi_buffers *out)
{
	const struct seal_pi_capability *layout = &channel->target.layout;
	uint64_t pi = request->length / layout->interval * layout->metadata;

	if (request->data % SEAL_CHANNEL_ALIGN ||
	    !lies_inside(request->data, request->length, channel->size) ||
	    !lies_inside(request->pi, pi, channel->size) ||
	    (request->pi < request->data + request->length && request->data < request->pi + pi))
		return -EINVAL;
	out->data = channel->shared + request->data;
	out->pi = channel->shared + request->pi;
	return 0;
}

static void serve_request(struct seal_channel *channel, const struct seal_channel_request *request,
			  struct seal_channel_answer *answer)
{
	struct pi_buffers buffers;

	memset(answer, 0, sizeof(*answer));
	answer->cookie = request->cookie;
	answer->status = pi_target_refuses(&channel->target, request);
	if (!answer->status)
		answer->status = place(channel, request, &buffers);
	if (answer->status)
		return;
	answer->status = pi_target_run(&channel->target, request, &buffers, &answer->error);
}

/* 1: a request; 0: there is none now; -1: the holder has closed its end, or sends what is no request. */
static int receive(const struct seal_channel *channel, struct seal_channel_request *request)
{
	ssize_t n = recv(channel->socket, request, sizeof(*request), MSG_DONTWAIT | MSG_TRUNC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	return n == (ssize_t)sizeof(*request) ? 1 : -1;
}

/* 0 when the holder does not take its answers: it is given up. */
static int answered(const struct seal_channel *channel, const struct seal_channel_answer *answer)
{
	return send(channel->socket, answer, sizeof(*answer), MSG_DONTWAIT | MSG_NOSIGNAL) ==
	       (ssize_t)sizeof(*answer);
}

static void refuse_all(const struct seal_channel *channel)
{
	struct seal_channel_request request;
	struct seal_channel_answer answer;

	while (receive(channel, &request) == 1) {
		answer = (struct seal_channel_answer){.cookie = request.cookie, .status = -ESTALE};
		if (!answered(channel, &answer))
			return;
	}
}

/* What was asked before the holder could know that the channel is stopped, also while that is refused:
 * after shutdown(2) nothing can be sent, and what was sent before is still there to be read. */
static void refuse_the_rest(const struct seal_channel *channel)
{
	refuse_all(channel);
	shutdown(channel->socket, SHUT_RD);
	refuse_all(channel);
}

static int wait_for_either(const struct seal_channel *channel)
{
	struct pollfd both[2] = {{.fd = channel->socket, .events = POLLIN},
				 {.fd = channel->stop, .events = POLLIN}};

	return poll(both, 2, -1) < 0 && errno != EINTR ? -1 : 0;
}

static int is_told(const struct seal_channel_answer *answer)
{
	/* What block/blk-core.c blk_errors makes of a medium and of a target that fails, too. */
	return answer->status == -EILSEQ || answer->status == -EIO || answer->status == -ENODATA ||
	       answer->status == -EREMOTEIO;
}

int seal_channel_serve(struct seal_channel *channel, struct seal_channel_report *report)
{
	while (!is_stopped(channel)) {
		int got = receive(channel, &report->request);

		if (got < 0)
			return SEAL_CHANNEL_ENDED;
		if (!got) {
			if (wait_for_either(channel) < 0)
				return SEAL_CHANNEL_ENDED;
			continue;
		}
		serve_request(channel, &report->request, &report->answer);
		if (!answered(channel, &report->answer) || channel->target.broken)
			return SEAL_CHANNEL_ENDED;
		if (is_told(&report->answer))
			return SEAL_CHANNEL_FAILED;
	}
	refuse_the_rest(channel);
	return SEAL_CHANNEL_ENDED;
}

/* PI commands. The keeper opens no device: it passes a request on to the PI channel of the registration, a
 * thread of the service (integrity/device/channel.c), which holds it against the seal and does the I/O. A
 * channel answers in the order of its requests. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

#define FILE_BITS 8

_Static_assert(SEAL_RING_FILES == 1 << FILE_BITS, "the number of a file fits into an event");

static struct seal_pi_command *entry_at(struct ring *ring, uint32_t place)
{
	return (void *)((char *)ring->commands + place);
}

static int pass_on(struct ring *ring, uint32_t place, const struct seal_command *command)
{
	struct registration *file = ring_file(ring, command->file);
	struct lane *lane = file ? file->lane : NULL;
	struct seal_channel_request request;

	if (!file)
		return -EBADF;
	if (!lane)
		return -ESTALE;
	if (lane->count == SEAL_RING_PENDING)
		return -EAGAIN;
	memcpy(&request, &entry_at(ring, place)->request, sizeof(request));
	request.op = command->op == SEAL_CMD_PI_WRITE ? SEAL_CHANNEL_WRITE : SEAL_CHANNEL_READ;
	if (send(lane->socket, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return errno == EAGAIN ? -EAGAIN : -ESTALE;
	lane->place[(lane->first + lane->count++) % SEAL_RING_PENDING] = place;
	return 0;
}

static void finish(struct seal_command *entry, int32_t status)
{
	entry->status = status;
	__atomic_store_n(&entry->done, 1, __ATOMIC_RELEASE);
}

static void complete(struct ring *ring, uint32_t place, const struct seal_channel_answer *answer)
{
	struct seal_pi_command *entry = entry_at(ring, place);

	entry->answer = *answer;
	finish(&entry->command, answer->status);
}

void ring_lane_serve(struct ring *ring, uint32_t place, const struct seal_command *command)
{
	struct seal_channel_answer answer = {0};

	if (command->size < sizeof(struct seal_pi_command)) {
		finish(&entry_at(ring, place)->command, -EINVAL);
		return;
	}
	answer.status = pass_on(ring, place, command);
	if (answer.status)
		complete(ring, place, &answer);
}

static void complete_oldest(struct ring *ring, struct lane *lane,
			    const struct seal_channel_answer *answer)
{
	complete(ring, lane->place[lane->first], answer);
	lane->first = (lane->first + 1) % SEAL_RING_PENDING;
	lane->count--;
}

void ring_lane_end(struct seal_rings *rings, struct ring *ring, struct registration *file)
{
	const struct seal_channel_answer over = {.status = -ESTALE};
	struct lane *lane = file->lane;

	if (!lane)
		return;
	while (lane->count)
		complete_oldest(ring, lane, &over);
	ring_bell(ring);
	file->lane = NULL;
	/* The client may have the same socket: closing ours alone would leave it in the set. */
	epoll_ctl(rings->epoll, EPOLL_CTL_DEL, lane->socket, NULL);
	ring_lane_free(lane);
}

/* 1: an answer; 0: there is none now; -1: the channel has ended, or answers what was not asked. */
static int receive(const struct lane *lane, struct seal_channel_answer *answer)
{
	ssize_t n = recv(lane->socket, answer, sizeof(*answer), MSG_DONTWAIT | MSG_TRUNC);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -1;
	return n == (ssize_t)sizeof(*answer) && lane->count ? 1 : -1;
}

void ring_lane_heard(struct seal_rings *rings, uint64_t event)
{
	const uint32_t number = (uint32_t)(event >> FILE_BITS), file = event % SEAL_RING_FILES;
	struct seal_channel_answer answer;
	struct registration *there;
	struct ring *ring;
	int got;

	SCOPED_LOCK(rings->lock);
	ring = ring_find(rings, number);
	there = ring ? ring_file(ring, file) : NULL;
	if (!there || !there->lane)
		return;
	while ((got = receive(there->lane, &answer)) > 0)
		complete_oldest(ring, there->lane, &answer);
	if (got < 0)
		ring_lane_end(rings, ring, there);
	else
		ring_bell(ring);
}

static int watch(const struct seal_rings *rings, const struct ring *ring, uint32_t file, int socket)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = RING_LANE | (uint64_t)ring->number << FILE_BITS | file,
	};

	return epoll_ctl(rings->epoll, EPOLL_CTL_ADD, socket, &event) < 0 ? -errno : 0;
}

int seal_ring_channel(struct seal_rings *rings, uint32_t number, uint32_t file, int socket)
{
	struct lane *lane = calloc(1, sizeof(*lane));
	struct registration *there = NULL;
	struct ring *ring;
	int error = -ENOENT;

	if (!lane) {
		close(socket);
		return -ENOMEM;
	}
	lane->socket = socket;
	pthread_mutex_lock(rings->lock);
	ring = ring_find(rings, number);
	if (ring)
		there = ring_file(ring, file);
	if (there)
		error = watch(rings, ring, file, socket);
	if (!error) {
		ring_lane_end(rings, ring, there);
		there->lane = lane;
	}
	pthread_mutex_unlock(rings->lock);
	if (error)
		ring_lane_free(lane);
	return error;
}

/* The holder's end of a PI channel. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "seal_pi.h"

_Static_assert(sizeof(struct seal_pi_facts) == PI_FACTS * sizeof(uint32_t), "numbers alone");

struct seal_pi {
	int socket;
	struct seal_client *client; /* whose ring has the requests; NULL: the socket has them */
	uint32_t file;
	struct seal_pi_facts facts;
	unsigned char *memory; /* data, and from data_size on the PI of as much data */
	size_t size, data_size;
};

/* The buffers of a request, and how far it has come. */
struct cursor {
	const struct iovec *iov;
	int count, at;
	size_t within; /* iov[at] */
	unsigned char *pi;
	uint64_t done, length;
};

static int map_memory(struct seal_pi *pi, int memory)
{
	const struct seal_pi_facts *facts = &pi->facts;
	struct stat found;
	uint64_t intervals;
	void *at;

	if (!facts->interval || !facts->metadata || fstat(memory, &found) < 0)
		return -EINVAL;
	pi->size = (size_t)found.st_size;
	intervals = pi->size / (facts->interval + facts->metadata);
	pi->data_size = intervals * facts->interval & ~(size_t)(SEAL_CHANNEL_ALIGN - 1);
	if (pi->data_size < facts->interval || pi->data_size < facts->block)
		return -EINVAL;
	at = mmap(NULL, pi->size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (at == MAP_FAILED)
		return -errno;
	pi->memory = at;
	return 0;
}

int seal_pi_attach(int socket, int memory, const struct seal_pi_facts *facts, struct seal_pi **out)
{
	struct seal_pi *pi = calloc(1, sizeof(*pi));
	int error = -ENOMEM;

	*out = NULL;
	if (pi) {
		pi->socket = socket;
		pi->facts = *facts;
		error = map_memory(pi, memory);
	}
	close(memory);
	if (error) {
		free(pi);
		close(socket);
		return error;
	}
	*out = pi;
	return 0;
}

static int open_channel(struct seal_client *client, const struct pi_opening *opening,
			struct seal_pi **pi)
{
	struct seal_pi_facts facts;
	uint32_t numbers[PI_FACTS] = {0};
	int fds[2], error = control_pi_channel(client, opening, fds, numbers);

	*pi = NULL;
	memcpy(&facts, numbers, sizeof(facts));
	if (!error)
		error = seal_pi_attach(fds[0], fds[1], &facts, pi);
	if (!error && opening->by_ring) {
		(*pi)->client = client;
		(*pi)->file = (uint32_t)opening->file;
	}
	return error;
}

int seal_pi_open(struct seal_client *client, int file, size_t bytes, const char *profile,
		 struct seal_pi **pi)
{
	const struct pi_opening opening = {file, 0, bytes, profile};

	return open_channel(client, &opening, pi);
}

int seal_pi_open_ring(struct seal_client *client, int file, size_t bytes, const char *profile,
		      struct seal_pi **pi)
{
	const struct pi_opening opening = {file, 1, bytes, profile};

	return open_channel(client, &opening, pi);
}

void seal_pi_close(struct seal_pi *pi)
{
	if (!pi)
		return;
	munmap(pi->memory, pi->size);
	/* The keeper has the same socket where requests go through the ring. */
	shutdown(pi->socket, SHUT_RDWR);
	close(pi->socket);
	free(pi);
}

const struct seal_pi_facts *seal_pi_facts(const struct seal_pi *pi)
{
	return &pi->facts;
}

void *seal_pi_memory(const struct seal_pi *pi, size_t *size)
{
	*size = pi->data_size;
	return pi->memory;
}

static int exchange_by_ring(const struct seal_pi *pi, const struct seal_channel_request *request,
			    struct seal_channel_answer *answer)
{
	struct seal_pi_command command = {
		.command = {.op = request->op == SEAL_CHANNEL_WRITE ? SEAL_CMD_PI_WRITE
								    : SEAL_CMD_PI_READ,
			    .file = pi->file},
		.request = *request,
	};
	int error = ring_carry_out(pi->client, &command.command);

	/* Until then the request stands there. */
	if (command.command.done)
		*answer = command.answer;
	return error;
}

/* One message each way. 0 or -errno. */
static int exchange(const struct seal_pi *pi, const struct seal_channel_request *request,
		    struct seal_channel_answer *answer)
{
	ssize_t n;

	if (pi->client)
		return exchange_by_ring(pi, request, answer);
	do
		n = send(pi->socket, request, sizeof(*request), MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EPIPE || errno == ECONNRESET ? -ESTALE : -errno;
	do
		n = recv(pi->socket, answer, sizeof(*answer), 0);
	while (n < 0 && errno == EINTR);
	if (n == 0 || (n < 0 && errno == ECONNRESET))
		return -ESTALE;
	if (n < 0)
		return -errno;
	return n == (ssize_t)sizeof(*answer) && answer->cookie == request->cookie ? answer->status
										  : -EPROTO;
}

/* Copies between the iovecs and the shared memory. */
static void copy(struct cursor *cursor, unsigned char *memory, uint64_t length, int to_memory)
{
	while (length) {
		const struct iovec *piece = &cursor->iov[cursor->at];
		size_t left = piece->iov_len - cursor->within, part = left < length ? left : length;
		unsigned char *theirs = (unsigned char *)piece->iov_base + cursor->within;

		memcpy(to_memory ? memory : theirs, to_memory ? theirs : memory, part);
		memory += part;
		length -= part;
		cursor->within += part;
		if (cursor->within == piece->iov_len) {
			cursor->at++;
			cursor->within = 0;
		}
	}
}

/* All data is in one piece in the shared memory. */
static int is_shared(const struct seal_pi *pi, const struct cursor *cursor)
{
	uintptr_t start = (uintptr_t)pi->memory, at;

	if (cursor->count != 1)
		return 0;
	at = (uintptr_t)cursor->iov->iov_base;
	return at >= start && at - start <= pi->data_size &&
	       (at - start) % SEAL_CHANNEL_ALIGN == 0 &&
	       cursor->iov->iov_len <= pi->data_size - (at - start);
}

/* The PI of the request's data; -EINVAL when it does not fit. */
static int begin(const struct seal_pi *pi, const struct seal_pi_io *io, const struct iovec *iov,
		 int count, struct cursor *out)
{
	uint64_t length = 0;
	struct iovec tags = {io->pi, io->pi_length};

	if (io->place != SEAL_PI_APART) {
		if (count < 1)
			return -EINVAL;
		tags = io->place == SEAL_PI_FIRST ? iov[0] : iov[count - 1];
		iov += io->place == SEAL_PI_FIRST;
		count--;
	}
	for (int i = 0; i < count; i++)
		if (__builtin_add_overflow(length, iov[i].iov_len, &length))
			return -EINVAL;
	if (!length || length % pi->facts.interval || length > SSIZE_MAX ||
	    (tags.iov_base && tags.iov_len != length / pi->facts.interval * pi->facts.metadata) ||
	    (!tags.iov_base && io->provided))
		return -EINVAL;
	*out = (struct cursor){.iov = iov, .count = count, .pi = tags.iov_base, .length = length};
	return 0;
}

static struct seal_channel_request request_of(const struct seal_pi *pi, const struct seal_pi_io *io,
					      uint16_t op, uint64_t done, uint64_t length)
{
	uint64_t first = io->has_reftag ? io->reftag : io->offset / pi->facts.interval;

	return (struct seal_channel_request){
		.cookie = io->cookie,
		.op = op,
		.flags = io->flags,
		.provided = io->provided,
		.verify = io->verify,
		.checkers = io->checkers,
		.tag = io->tag,
		.offset = io->offset + done,
		.length = length,
		.reftag = first + done / pi->facts.interval,
		.pi = pi->data_size,
	};
}

/* As much as the memory has room for. */
static int step(struct seal_pi *pi, const struct seal_pi_io *io, uint16_t op, struct cursor *cursor,
		struct seal_channel_error *error)
{
	const struct seal_pi_facts *facts = &pi->facts;
	uint64_t most =
		pi->data_size < SEAL_CHANNEL_LENGTH_MAX ? pi->data_size : SEAL_CHANNEL_LENGTH_MAX;
	uint64_t left = cursor->length - cursor->done, length = left < most ? left : most;
	size_t first = cursor->done / facts->interval * facts->metadata;
	size_t tags = length / facts->interval * facts->metadata;
	struct seal_channel_request request = request_of(pi, io, op, cursor->done, length);
	struct seal_channel_answer answer;
	int shared = is_shared(pi, cursor), result;

	if (shared)
		request.data = (uint64_t)((unsigned char *)cursor->iov->iov_base - pi->memory) +
			       cursor->done;
	else if (op == SEAL_CHANNEL_WRITE)
		copy(cursor, pi->memory, length, 1);
	if (op == SEAL_CHANNEL_WRITE && cursor->pi)
		memcpy(pi->memory + pi->data_size, cursor->pi + first, tags);
	else
		memset(pi->memory + pi->data_size, 0, tags);
	memset(&answer, 0, sizeof(answer));
	result = exchange(pi, &request, &answer);
	if (error) {
		*error = answer.error;
		error->index += (uint32_t)(cursor->done / facts->interval);
	}
	if (cursor->pi && (!result || result == -EILSEQ))
		memcpy(cursor->pi + first, pi->memory + pi->data_size, tags);
	if (op == SEAL_CHANNEL_READ && !shared && (!result || result == -EILSEQ))
		copy(cursor, pi->memory, length, 0);
	cursor->done += length;
	return result;
}

static ssize_t run(struct seal_pi *pi, const struct iovec *iov, int count,
		   const struct seal_pi_io *given, uint16_t op, struct seal_channel_error *error)
{
	struct seal_pi_io io = {0};
	struct cursor cursor;
	int result;

	memcpy(&io, given, given->size < sizeof(io) ? given->size : sizeof(io));
	if (io.checkers & SEAL_BY_CLIENT)
		return -ENOTSUP;
	result = begin(pi, &io, iov, count, &cursor);
	while (!result && cursor.done < cursor.length)
		result = step(pi, &io, op, &cursor, error);
	return result ? result : (ssize_t)cursor.length;
}

ssize_t seal_pi_writev(struct seal_pi *pi, const struct iovec *iov, int count,
		       const struct seal_pi_io *io, struct seal_channel_error *error)
{
	return run(pi, iov, count, io, SEAL_CHANNEL_WRITE, error);
}

ssize_t seal_pi_readv(struct seal_pi *pi, const struct iovec *iov, int count,
		      const struct seal_pi_io *io, struct seal_channel_error *error)
{
	return run(pi, iov, count, io, SEAL_CHANNEL_READ, error);
}

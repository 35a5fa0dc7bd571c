/* What the service asks of the rings. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

/* The head, rows of rings, rows of registrations. The memfd, or -errno. */
static int list(struct seal_rings *rings)
{
	struct keeper_rings there = {.rings = seal_rings_list(rings, NULL, 0),
				     .files = seal_rings_files(rings, NULL, 0)};
	size_t head = sizeof(there), rows = there.rings * sizeof(struct seal_ring_row);
	size_t size = head + rows + there.files * sizeof(struct seal_file_row);
	AUTO_CLOSE int fd = memfd_create("sealsvc-rings", MFD_CLOEXEC);
	AUTO_FREE char *at = malloc(size);

	if (fd < 0)
		return -errno;
	if (!at)
		return -ENOMEM;
	/* Only we create rings, or register files: the counts stay. */
	seal_rings_count(rings, &there.counters);
	memcpy(at, &there, head);
	seal_rings_list(rings, (void *)(at + head), there.rings);
	seal_rings_files(rings, (void *)(at + head + rows), there.files);
	if (write(fd, at, size) != (ssize_t)size)
		return -EIO;
	return keep_fd(&fd);
}

/* What came to wait for it meanwhile has nobody to recall it any more: it is judged anew. */
static void judge_anew(struct keeper *keeper, const struct keeper_request *request)
{
	if (keeper->gate && request->inode)
		seal_gate_settle(keeper->gate, request->device, request->inode);
}

static int64_t quieten_slot(struct keeper *keeper, const struct keeper_request *request)
{
	const struct keeper_ring_request *ask = &request->ring;
	int error = seal_slot_quiet(keeper->rings, ask->ring, ask->slot, ask->terms.id);

	if (!error)
		judge_anew(keeper, request);
	return error;
}

static int64_t set_slot(struct keeper *keeper, const struct keeper_request *request)
{
	const struct keeper_ring_request *ask = &request->ring;
	int error = seal_slot_set(keeper->rings, ask->ring, ask->slot, &ask->terms);

	if (!error)
		judge_anew(keeper, request);
	return error;
}

static int64_t give(struct keeper_reply *reply, int *fds, int fd)
{
	if (fd < 0)
		return fd;
	fds[reply->count++] = fd;
	return 0;
}

int64_t keeper_ask_rings(struct keeper *keeper, const struct keeper_request *request, int fd,
			 struct keeper_reply *reply, int *fds)
{
	const struct keeper_ring_request *ask = &request->ring;
	struct seal_rings *rings = keeper->rings;
	int64_t result = -EOPNOTSUPP;

	if (ask->op == KEEPER_RING_REGISTER)
		return seal_ring_register(rings, ask->ring, &ask->registration, fd);
	if (ask->op == KEEPER_RING_FRESHEN)
		return seal_ring_freshen(rings, ask->ring, ask->file, fd);
	if (ask->op == KEEPER_RING_CHANNEL)
		return fd < 0 ? -EBADF : seal_ring_channel(rings, ask->ring, ask->file, fd);
	if (fd >= 0)
		close(fd);
	switch (ask->op) {
	case KEEPER_RING_CREATE:
		return seal_ring_create(rings, &ask->shape);
	case KEEPER_RING_DESCRIPTORS:
		result = seal_ring_descriptors(rings, ask->ring, fds);
		reply->count = result ? 0 : SEAL_RING_FDS;
		break;
	case KEEPER_RING_DROP:
		return seal_ring_drop(rings, ask->ring);
	case KEEPER_RING_UNREGISTER:
		return seal_ring_unregister(rings, ask->ring, ask->file, ask->state);
	case KEEPER_RING_CLOSE:
		return seal_ring_close(rings, ask->ring, ask->file, (int)ask->state, ask->start,
				       ask->end);
	case KEEPER_RING_STALE:
		return seal_ring_is_stale(rings, ask->ring, ask->file);
	case KEEPER_RING_COMPLETE:
		return seal_ring_complete(rings, ask->ring, ask->handle, ask->status, ask->end);
	case KEEPER_RING_TELL:
		return seal_ring_tell(rings, ask->ring, &ask->event);
	case KEEPER_RING_REPLAY:
		seal_rings_replay(rings);
		return 0;
	case KEEPER_RING_SPIN:
		seal_rings_spin(rings, (uint32_t)ask->handle);
		return 0;
	case KEEPER_RING_LIST:
		return give(reply, fds, list(rings));
	case KEEPER_SLOT_TAKE:
		return seal_slot_take(rings, ask->ring, &ask->terms);
	case KEEPER_SLOT_SET:
		return set_slot(keeper, request);
	case KEEPER_SLOT_QUIET:
		return quieten_slot(keeper, request);
	}
	return result;
}

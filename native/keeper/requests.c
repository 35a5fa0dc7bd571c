/* What each request does. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

struct receiver {
	struct outbox *outbox;
	int socket;
};

static void receive(void *context)
{
	const struct receiver *receiver = context;

	outbox_open(receiver->outbox, receiver->socket);
}

static int64_t own(struct keeper *keeper, int connection, uint32_t version, int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int reports;

	if (version != KEEPER_VERSION)
		return -EPROTONOSUPPORT;
	if (keeper->owner >= 0 && keeper->owner != connection)
		return -EBUSY;
	if (fd < 0)
		return -EBADF;
	if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	reports = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (reports < 0)
		return -errno;
	keeper->owner = connection;
	seal_rings_hand_over(keeper->rings, receive, &(struct receiver){&keeper->outbox, reports});
	if (keeper->gate)
		seal_gate_exempt(keeper->gate, peer.pid);
	return 0;
}

/* Of kernels without a gate too. */
static int64_t refuse_overlays(struct keeper *keeper, int fd)
{
	int error = keeper->overlays ? 0 : seal_overlays_open(&keeper->overlays);

	return error ? error : seal_overlays_refuse(keeper->overlays, fd);
}

static int64_t ask_gate(struct keeper *keeper, const struct keeper_request *request, int fd,
			struct keeper_reply *reply)
{
	struct seal_gate *gate = keeper->gate;

	if (!gate)
		return keeper->gate_error;
	switch (request->op) {
	case KEEPER_GATE:
		return 0;
	case KEEPER_ARM:
		return seal_gate_arm(gate, fd);
	case KEEPER_WATCH:
		return seal_gate_watch(gate, fd, &request->traits);
	case KEEPER_UNWATCH:
		return seal_gate_unwatch(gate, request->device, request->inode);
	case KEEPER_GUARD:
		return seal_gate_guard(gate, request->device, request->inode, &request->guard);
	case KEEPER_UNGUARD:
		return seal_gate_unguard(gate, request->device, request->inode, request->id);
	case KEEPER_PASSAGES:
		return seal_gate_passages(gate, request->device, request->inode);
	case KEEPER_OWN_EVENTS:
		return seal_gate_own_events(gate, request->device, request->inode);
	case KEEPER_REPLAY:
		seal_gate_replay(gate);
		return 0;
	case KEEPER_ABSOLVE:
		return seal_gate_absolve(gate, request->id, request->guard.id);
	case KEEPER_PROVER:
		return seal_gate_prover(gate, fd);
	case KEEPER_COUNT:
		seal_gate_count(gate, &reply->counters);
		reply->counters.dropped_reports = keeper->outbox.dropped;
		return 0;
	}
	return -EOPNOTSUPP;
}

static int64_t list_kept(struct keeper *keeper, uint64_t first, struct keeper_reply *reply,
			 int *fds, struct keeper_names *names)
{
	const struct store *store = &keeper->store;

	for (uint64_t i = first; i < store->count && reply->count < KEEPER_BATCH; i++) {
		memcpy(names->name[reply->count], store->at[i].name, KEEPER_NAME);
		fds[reply->count++] = store->at[i].fd;
	}
	return (int64_t)store->count;
}

static int64_t snapshot(struct keeper *keeper, struct keeper_reply *reply, int *fds)
{
	struct keeper_snapshot head = {0, 0};
	size_t size, files_size, guards_size;
	AUTO_CLOSE int fd = memfd_create("sealsvc-snapshot", MFD_CLOEXEC);
	char *at;

	if (keeper->gate) {
		head.files = seal_gate_files(keeper->gate, NULL, 0);
		head.guards = seal_gate_guards(keeper->gate, NULL, 0);
	}
	files_size = head.files * sizeof(struct seal_gate_file);
	guards_size = head.guards * sizeof(struct seal_gate_guard);
	size = sizeof(head) + files_size + guards_size;
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return -errno;
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return -errno;
	memcpy(at, &head, sizeof(head));
	if (keeper->gate) {
		seal_gate_files(keeper->gate, (void *)(at + sizeof(head)), head.files);
		seal_gate_guards(keeper->gate, (void *)(at + sizeof(head) + files_size),
				 head.guards);
	}
	munmap(at, size);
	fds[reply->count++] = keep_fd(&fd);
	return 0;
}

static int64_t list_files(struct keeper *keeper, uint64_t first, struct keeper_reply *reply,
			  int *fds)
{
	size_t count, total = keeper->gate ? seal_gate_files(keeper->gate, NULL, 0) : 0;
	AUTO_FREE struct seal_gate_file *files = calloc(total + 1, sizeof(*files));

	if (!files)
		return -ENOMEM;
	count = total ? seal_gate_files(keeper->gate, files, total) : 0;
	for (uint64_t i = first; i < count && reply->count < KEEPER_BATCH; i++)
		fds[reply->count++] = files[i].fd;
	return (int64_t)count;
}

/* Kept descriptors other than `name`, and guards, are somebody's seals. */
static int64_t leave(struct keeper *keeper, const char *name)
{
	if ((keeper->gate && seal_gate_guards(keeper->gate, NULL, 0)) ||
	    seal_rings_files(keeper->rings, NULL, 0))
		return 0;
	for (size_t i = 0; i < keeper->store.count; i++)
		if (strncmp(keeper->store.at[i].name, name, KEEPER_NAME) != 0)
			return 0;
	keeper->leaving = 1;
	return 1;
}

static int64_t release(struct keeper *keeper, int connection)
{
	if (keeper->owner >= 0 && keeper->owner != connection)
		return -EBUSY;
	keeper->leaving = 1;
	return 0;
}

void keeper_greet(struct keeper *keeper, int connection, const struct keeper_hello *hello,
		  struct keeper_greeting *greeting)
{
	*greeting = (struct keeper_greeting){-EOPNOTSUPP, KEEPER_VERSION, (uint32_t)getpid()};
	if (hello->op == KEEPER_HELLO_ASK)
		greeting->result = 0;
	else if (hello->op == KEEPER_HELLO_RELEASE)
		greeting->result = release(keeper, connection);
	else if (hello->op == KEEPER_HELLO_LEAVE)
		greeting->result = keeper->owner >= 0 ? -EBUSY : leave(keeper, "journal");
}

void keeper_answer(struct keeper *keeper, int connection, const struct keeper_request *request,
		   int fd, struct keeper_reply *reply, int *fds, struct keeper_names *names)
{
	int64_t *result = &reply->result;

	memset(reply, 0, sizeof(*reply));
	if (request->op == KEEPER_RELEASE) {
		*result = release(keeper, connection);
	} else if (request->op == KEEPER_OWN) {
		*result = own(keeper, connection, request->argument, fd);
	} else if (connection != keeper->owner) {
		*result = -EPERM;
	} else if (request->op == KEEPER_KEEP) {
		*result = fd < 0 ? -EBADF : store_keep(&keeper->store, request->name, fd);
		return;
	} else if (request->op == KEEPER_DROP) {
		*result = store_drop(&keeper->store, request->name);
	} else if (request->op == KEEPER_KEPT) {
		*result = list_kept(keeper, request->id, reply, fds, names);
	} else if (request->op == KEEPER_SNAPSHOT) {
		*result = snapshot(keeper, reply, fds);
	} else if (request->op == KEEPER_FILES) {
		*result = list_files(keeper, request->id, reply, fds);
	} else if (request->op == KEEPER_LEAVE) {
		*result = leave(keeper, request->name);
	} else if (request->op == KEEPER_REFUSE_OVERLAYS) {
		*result = refuse_overlays(keeper, fd);
	} else if (request->op == KEEPER_OVERLAYS_REFUSED) {
		*result = keeper->overlays ? seal_overlays_refused(keeper->overlays) : 0;
	} else if (request->op == KEEPER_CANARY_SET) {
		/* Takes fd over. */
		*result = canary_set(&keeper->canary, fd, request->argument);
		return;
	} else if (request->op == KEEPER_CANARY) {
		*result = canary_ask(&keeper->canary);
	} else if (request->op == KEEPER_RING) {
		/* Takes fd over. */
		*result = keeper_ask_rings(keeper, request, fd, reply, fds);
		return;
	} else {
		*result = ask_gate(keeper, request, fd, reply);
	}
	if (fd >= 0)
		close(fd);
}

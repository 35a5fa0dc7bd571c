/* target SOCKET: the holder. Run by `sealctl hold FILE -- target SOCKET`.
 *
 * Maps the sealed file, registers the mapping as an RDMA memory region, and tells initiators that
 * connect to SOCKET where it is. Each initiator has a queue pair of its own, and whatever goes wrong
 * with one ends that one alone. A recall comes as SIGTERM: the region is deregistered first, since
 * nobody may reach the blocks any more, then the file is unmapped and closed. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "queue_pair.h"

#define INITIATORS 64
#define ACCESS (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

static volatile sig_atomic_t recalled;

static void on_recall(int number)
{
	(void)number;
	recalled = 1;
}

static void say(const char *what)
{
	printf("%s\n", what);
	fflush(stdout);
}

/* On fsdax the kernel refuses to pin pages for an unlimited time (FOLL_LONGTERM), so the region is
 * registered on demand: the device then asks for translations, and is told when they end. */
static struct ibv_mr *register_region(struct ibv_pd *domain, void *address, size_t length)
{
	struct ibv_mr *region = ibv_reg_mr(domain, address, length, ACCESS);

	if (region) {
		say("registered, with pages pinned");
		return region;
	}
	printf("pinning is refused: %s\n", strerror(errno));
	region = ibv_reg_mr(domain, address, length, ACCESS | IBV_ACCESS_ON_DEMAND);
	if (!region)
		die("ibv_reg_mr on demand");
	say("registered on demand");
	return region;
}

static int listen_on(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(fd, INITIATORS) < 0)
		die(path);
	return fd;
}

/* `pair` is NULL until the initiator has said where it is. */
struct initiator {
	int fd;
	struct ibv_qp *pair;
};

static struct initiator initiators[INITIATORS];
static int connected;

static void welcome(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		perror("accept");
		return;
	}
	initiators[connected++] = (struct initiator){.fd = fd};
}

static void part_from(int number, const char *why)
{
	struct initiator *leaving = &initiators[number];

	say(why);
	if (leaving->pair)
		ibv_destroy_qp(leaving->pair);
	close(leaving->fd);
	*leaving = initiators[--connected];
}

/* It says where it is, is told where we are, and leaves when it is done: NULL, or why it must go. */
static const char *attend(struct initiator *of, struct adapter *adapter,
			  const struct endpoint *region)
{
	struct endpoint theirs, ours;
	ssize_t got = recv(of->fd, &theirs, sizeof(theirs), 0);

	if (of->pair)
		return got == 0 ? "an initiator has written" : "an initiator is gone";
	if (got != (ssize_t)sizeof(theirs))
		return "an initiator did not say where it is";
	of->pair = queue_pair_open(adapter, &ours);
	if (!of->pair || queue_pair_connect(adapter, of->pair, &theirs) < 0)
		return "an initiator cannot be connected";
	ours.remote_key = region->remote_key;
	ours.remote_address = region->remote_address;
	ours.remote_length = region->remote_length;
	if (send(of->fd, &ours, sizeof(ours), MSG_NOSIGNAL) < 0)
		return "an initiator is gone";
	return NULL;
}

/* Until a signal comes. With no place left, those who connect wait in the socket's queue. */
static void serve(int listener, struct adapter *adapter, const struct endpoint *region,
		  const sigset_t *waiting)
{
	struct pollfd waited[INITIATORS + 1];
	const char *why;

	while (!recalled) {
		for (int n = 0; n < connected; n++)
			waited[n] = (struct pollfd){initiators[n].fd, POLLIN, 0};
		waited[connected] =
			(struct pollfd){connected < INITIATORS ? listener : -1, POLLIN, 0};
		if (ppoll(waited, (nfds_t)connected + 1, NULL, waiting) <= 0)
			continue;
		if (waited[connected].revents)
			welcome(listener);
		/* From the last: whoever parts leaves its place to the one behind. */
		for (int n = connected - 1; n >= 0; n--) {
			if (n < INITIATORS && initiators[n].fd == waited[n].fd &&
			    waited[n].revents) {
				why = attend(&initiators[n], adapter, region);
				if (why)
					part_from(n, why);
			}
		}
	}
	while (connected)
		part_from(connected - 1, "an initiator is cut off");
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_recall};
	const char *sealed = getenv("SEALSVC_FD");
	sigset_t blocked, waiting;
	struct adapter adapter;
	struct endpoint where = {0};
	struct ibv_mr *region;
	struct stat st;
	void *mapping;
	int fd, listener;

	if (argc != 2 || !sealed) {
		fprintf(stderr, "usage: sealctl hold FILE -- %s SOCKET\n", argv[0]);
		return 2;
	}
	/* Blocked but for the wait in ppoll, so that no recall is missed between two looks at it. */
	sigaction(SIGTERM, &action, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGTERM);
	sigprocmask(SIG_BLOCK, &blocked, &waiting);
	fd = atoi(sealed);
	if (fstat(fd, &st) < 0)
		die("the sealed descriptor");
	mapping = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE,
		       MAP_SHARED_VALIDATE | MAP_SYNC | MAP_POPULATE, fd, 0);
	if (mapping == MAP_FAILED)
		die("mmap with MAP_SYNC");
	adapter_open(&adapter);
	region = register_region(adapter.domain, mapping, (size_t)st.st_size);
	where.remote_key = region->rkey;
	where.remote_address = (uint64_t)mapping;
	where.remote_length = (uint64_t)st.st_size;
	listener = listen_on(argv[1]);
	say("ready");
	serve(listener, &adapter, &where, &waiting);
	say("recalled");
	if (ibv_dereg_mr(region))
		die("ibv_dereg_mr");
	adapter_close(&adapter);
	munmap(mapping, (size_t)st.st_size);
	close(fd);
	unlink(argv[1]);
	say("deregistered, unmapped and closed");
	return 0;
}

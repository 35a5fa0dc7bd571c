/* target SOCKET: the holder. Run by `sealctl hold FILE -- target SOCKET`.
 *
 * Maps the sealed file, registers the mapping as an RDMA memory region, and tells initiators that
 * connect to SOCKET where it is. A recall comes as SIGTERM: the region is deregistered first, since
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
	    listen(fd, 1) < 0)
		die(path);
	return fd;
}

/* One initiator at a time: it says where it is, is told where we are, and leaves when it is done. */
static void serve(int listener, struct queue_pair *qp, const struct endpoint *ours)
{
	struct endpoint theirs;
	char end;
	int fd = accept(listener, NULL, NULL);

	if (fd < 0)
		die("accept");
	if (recv(fd, &theirs, sizeof(theirs), 0) == (ssize_t)sizeof(theirs)) {
		queue_pair_connect(qp, &theirs);
		if (send(fd, ours, sizeof(*ours), MSG_NOSIGNAL) > 0 && recv(fd, &end, 1, 0) >= 0)
			say("an initiator has written");
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_recall};
	const char *sealed = getenv("SEALSVC_FD");
	sigset_t blocked, waiting;
	struct queue_pair qp;
	struct endpoint ours;
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
	queue_pair_open(&qp, &ours);
	region = register_region(qp.domain, mapping, (size_t)st.st_size);
	ours.remote_key = region->rkey;
	ours.remote_address = (uint64_t)mapping;
	ours.remote_length = (uint64_t)st.st_size;
	listener = listen_on(argv[1]);
	say("ready");
	while (!recalled) {
		struct pollfd arrival = {listener, POLLIN, 0};

		if (ppoll(&arrival, 1, NULL, &waiting) > 0)
			serve(listener, &qp, &ours);
	}
	say("recalled");
	if (ibv_dereg_mr(region))
		die("ibv_dereg_mr");
	queue_pair_close(&qp);
	munmap(mapping, (size_t)st.st_size);
	close(fd);
	unlink(argv[1]);
	say("deregistered, unmapped and closed");
	return 0;
}

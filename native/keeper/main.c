/* sealsvc-keeper SOCKET [NAME]: listen there, and at the abstract NAME, go into the background, and keep. Ends by itself when its owner
 * says so, or by KEEPER_RELEASE; SIGTERM does not end it, since that would let every seal go. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "internal.h"

static int complain(const char *what, int error)
{
	fprintf(stderr, "sealsvc-keeper: %s: %s\n", what, strerror(error));
	return 1;
}

/* A socket nobody answers on is a dead keeper's. */
static int listen_on(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return -EADDRINUSE;
	if (unlink(path) < 0 && errno != ENOENT)
		return -errno;
	umask(0177);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0)
		return -errno;
	return fd;
}

/* -EADDRINUSE: another keeper of ours lives, at whatever path; -1: the name is taken by a user that is
 * none of ours, who can keep us from being found but not from keeping. */
static int listen_by_name(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (strlen(name) + 1 > sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path + 1, name, strlen(name));
	if (bind(fd, (struct sockaddr *)&address, length) == 0)
		return listen(fd, 16) < 0 ? -errno : fd;
	if (errno != EADDRINUSE)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, length) == 0 &&
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid())
		return -EADDRINUSE;
	close(fd);
	return -1;
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		complain(path, errno); /* not killed last, then */
	close(fd);
}

/* Its parent's end tells whoever started it that it listens. */
static int go_into_background(void)
{
	pid_t pid = fork();
	int null;

	if (pid)
		return pid < 0 ? -errno : 1;
	setsid();
	if (chdir("/") < 0)
		return -errno;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
		return -errno;
	if (null > 2)
		close(null);
	return 0;
}

/* What a client says about its recalled seal is heard after the conflict. */
static void deliver_ring(void *context, const struct seal_ring_report *report)
{
	struct keeper *keeper = context;

	if (report->kind == SEAL_RING_FORWARD && keeper->gate)
		seal_gate_tell(keeper->gate);
	outbox_deliver_ring(&keeper->outbox, report);
}

static int start_rings(struct keeper *keeper)
{
	pthread_mutex_t *lock = &keeper->rings_lock;
	int error;

	pthread_mutex_init(lock, NULL);
	if (keeper->gate)
		lock = seal_gate_lock(keeper->gate);
	error = seal_rings_open(&keeper->rings, lock, deliver_ring, keeper);
	if (!error)
		error = seal_rings_start(keeper->rings);
	if (!error && keeper->gate)
		seal_gate_on_watch(keeper->gate, seal_rings_judge, keeper->rings);
	return error;
}

int main(int argc, char **argv)
{
	static struct keeper keeper = {.owner = -1};
	const struct seal_gate_outlet outlet = {outbox_deliver, outbox_postpone, outbox_flush,
						&keeper.outbox};
	struct rlimit files;
	int listener[2] = {-1, -1}, result;

	if (argc != 2 && argc != 3) {
		fprintf(stderr, "usage: sealsvc-keeper SOCKET [NAME]\n");
		return 2;
	}
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	/* Each watched file and each held operation is a descriptor. */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	/* The name first: whoever has it may take a dead keeper's path away. */
	if (argc == 3)
		listener[1] = listen_by_name(argv[2]);
	if (listener[1] < -1)
		return complain(argv[2], -listener[1]);
	listener[0] = listen_on(argv[1]);
	if (listener[0] < 0)
		return complain(argv[1], -listener[0]);
	result = go_into_background();
	if (result)
		return result < 0 ? complain("cannot go into the background", -result) : 0;
	prctl(PR_SET_NAME, "sealsvc-keeper");
	write_file("/proc/self/oom_score_adj", "-1000");
	/* Thousands of tasks may become runnable by what we do; bystanders wait for us, not for them. */
	if (setpriority(PRIO_PROCESS, 0, -10) < 0)
		complain("setpriority", errno);
	outbox_init(&keeper.outbox);
	/* Only now: threads do not survive fork. */
	keeper.gate_error = seal_gate_open(&keeper.gate, &outlet);
	result = start_rings(&keeper);
	if (result)
		return complain("cannot serve rings", -result);
	canary_init(&keeper.canary, keeper.rings);
	/* Once more, so that whoever connects is told this process's pid (unix_listen, SO_PEERCRED). */
	for (int i = 0; i < 2; i++)
		if (listener[i] >= 0)
			listen(listener[i], 16);
	keeper_serve(&keeper, listener);
	canary_stop(&keeper.canary);
	/* The gate asks the rings, whose lock is the gate's. */
	if (keeper.gate)
		seal_gate_on_watch(keeper.gate, NULL, NULL);
	seal_rings_close(keeper.rings);
	if (keeper.overlays)
		seal_overlays_close(keeper.overlays);
	if (keeper.gate)
		seal_gate_close(keeper.gate);
	store_clear(&keeper.store);
	/* Its name goes last: whoever sees that it is gone may rely on everything else being so. */
	unlink(argv[1]);
	close(listener[0]);
	if (listener[1] >= 0)
		close(listener[1]);
	return 0;
}

/* All of libseal on one page: a program with an event loop of its own that seals a block, gives it up when
 * it is asked to, and never waits for anybody.
 *
 *	cc -o demo_seal demo_seal.c $(pkg-config --cflags --libs libseal)
 *	./demo_seal FILE
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <seal.h>
#include <seal_ring.h>

#define BLOCK 4096

static struct seal seal;
static int file, held;

/* Whether the seal, or the registration with all that is in it, is to be given back. */
static int is_recall(const struct seal_news *what)
{
	uint32_t state = seal_word_state(what->word);

	if (what->kind == SEAL_EVENT_FILE)
		return (int)what->file == file && state != SEAL_GRANTED && state != SEAL_ACTIVE;
	return what->number == seal.number &&
	       (what->kind == SEAL_EVENT_RECALL || what->kind == SEAL_EVENT_LOST);
}

/* Called by seal_dispatch(). */
static void news(struct seal_client *client, const struct seal_news *what, void *context)
{
	(void)context;
	if (held && what->kind == SEAL_EVENT_OVER && what->number == seal.number)
		held = 0;
	if (!held || !is_recall(what))
		return;
	/* Here a real program deregisters its memory, and tells its peers. */
	printf("recalled: giving %d bytes back\n", BLOCK);
	if (seal_refresh(client, &seal) == 0 && seal_return(client, &seal) == 0)
		held = 0;
}

static int complain(const char *what, int error)
{
	fprintf(stderr, "demo_seal: %s: %s\n", what, strerror(-error));
	return 1;
}

int main(int argc, char **argv)
{
	struct seal_options options = {.size = sizeof(options), .news = news};
	/* A shared one takes risks that policy has to accept, where the kernel has no BPF LSM. */
	struct seal_file_options terms = {.size = sizeof(terms), .kind = SEAL_KIND_EXCLUSIVE};
	struct seal_map_extent extent;
	struct seal_client *client;
	int fd, error;
	fd = open(argc > 1 ? argv[1] : "", O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		perror("demo_seal: open");
		return 1;
	}
	error = seal_open(&client, &options);
	if (error)
		return complain("no service", error);
	file = seal_register(client, fd, &terms);
	if (file < 0) {
		fprintf(stderr, "demo_seal: %s\n", seal_failure(client));
		return 1;
	}
	error = seal_grant(client, file, 0, BLOCK, SEAL_RW, &seal);
	if (error)
		return complain("seal_grant", error);
	held = 1;
	/* While the seal is valid, this is where the block is. */
	if (seal_extents(client, file, 0, BLOCK, &extent, 1) == 1)
		printf("sealed: byte 0 is at %llu of the device\n",
		       (unsigned long long)extent.physical);
	fflush(stdout);
	while (held) {
		struct pollfd poller = {.fd = seal_fd(client), .events = POLLIN};

		/* Between events it costs one load to know that nothing has changed. */
		if (seal_valid(&seal))
			poll(&poller, 1, -1);
		error = seal_dispatch(client);
		if (error < 0)
			return complain("seal_dispatch", error);
	}
	error = seal_unregister(client, file);
	if (error)
		return complain("seal_unregister", error);
	printf("returned\n");
	seal_close(client);
	close(fd);
	return 0;
}

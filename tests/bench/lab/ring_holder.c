/* ring_holder SOCKET FILE: what holder.c does, through a ring: for each line on standard input, seals FILE,
 * maps it, says "sealed", and gives the seal back when it is recalled. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "seal.h"
#include "seal_ring.h"

static unsigned recalls;

static void die(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-error));
	exit(1);
}

static void news(struct seal_client *client, const struct seal_news *news, void *context)
{
	(void)client;
	(void)context;
	recalls += news->kind == SEAL_EVENT_RECALL;
}

static void hold(struct seal_client *client, int fd, int file)
{
	struct seal seal;
	struct stat st;
	void *mapping;
	int error;

	if (fstat(fd, &st) < 0)
		die("fstat", -1);
	/* EAGAIN: what the one before changed is being read. */
	while ((error = seal_grant(client, file, 0, (uint64_t)st.st_size, SEAL_RW, &seal)) == -11)
		usleep(1000);
	if (error)
		die("seal_grant", error);
	mapping = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		die("mmap", -1);
	recalls = 0;
	printf("sealed\n");
	fflush(stdout);
	while (!recalls) {
		struct pollfd poller = {seal_fd(client), POLLIN, 0};

		poll(&poller, 1, 60000);
		error = seal_dispatch(client);
		if (error < 0)
			die("seal_dispatch", error);
	}
	munmap(mapping, (size_t)st.st_size);
	error = seal_refresh(client, &seal);
	if (!error)
		error = seal_return(client, &seal);
	if (error)
		die("seal_return", error);
}

int main(int argc, char **argv)
{
	const struct seal_file_options terms = {.size = sizeof(terms),
						.grace = UINT64_C(60000000000)};
	struct seal_options options = {.size = sizeof(options), .news = news};
	struct seal_client *client;
	int error, fd, file;
	char line[16];

	if (argc != 3)
		return 2;
	options.socket = argv[1];
	error = seal_open(&client, &options);
	if (error)
		die("seal_open", error);
	fd = open(argv[2], O_RDWR | O_CLOEXEC);
	file = seal_register(client, fd, &terms);
	if (file < 0)
		die(seal_failure(client), file);
	while (fgets(line, sizeof(line), stdin))
		hold(client, fd, file);
	seal_close(client);
	return 0;
}

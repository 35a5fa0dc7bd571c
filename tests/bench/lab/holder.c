/* holder SOCKET FILE: for each line on standard input, seals FILE, maps it, says "sealed", and gives the
 * seal back when it is recalled. As small a holder as there can be: what is measured is the service. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ROOM 65536
#define SEAL_ID 24

static char message[ROOM];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		die(path);
	return fd;
}

static void send_with(int connection, const char *text, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec part = {(void *)text, strlen(text)};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};

	if (fd >= 0) {
		m.msg_control = &control;
		m.msg_controllen = sizeof(control);
		memset(&control, 0, sizeof(control));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	if (sendmsg(connection, &m, 0) < 0)
		die("sendmsg");
}

/* The next message that holds `what`. */
static void await(int connection, const char *what)
{
	do {
		ssize_t n = recv(connection, message, ROOM - 1, 0);

		if (n <= 0)
			die("recv");
		message[n] = '\0';
		if (strstr(message, "\"failure\"")) {
			fprintf(stderr, "%s\n", message);
			exit(1);
		}
	} while (!strstr(message, what));
}

static void hold(int connection, const char *path, int number)
{
	char request[256], seal[SEAL_ID + 1];
	struct stat st;
	void *mapping;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0)
		die(path);
	snprintf(request, sizeof(request), "{\"op\":\"grant\",\"id\":%d,\"grace\":60}", number);
	send_with(connection, request, fd);
	await(connection, "\"answer\"");
	snprintf(seal, sizeof(seal), "%s", strstr(message, "\"id\":\"") + strlen("\"id\":\""));
	mapping = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		die("mmap");
	close(fd);
	printf("sealed\n");
	fflush(stdout);
	await(connection, "\"recall\"");
	munmap(mapping, (size_t)st.st_size);
	snprintf(request, sizeof(request), "{\"op\":\"return\",\"id\":%d,\"seal\":\"%s\"}",
		 number + 1, seal);
	send_with(connection, request, -1);
	await(connection, "\"answer\"");
}

int main(int argc, char **argv)
{
	char line[16];
	int connection;

	if (argc != 3)
		return 2;
	connection = connect_to(argv[1]);
	for (int number = 1; fgets(line, sizeof(line), stdin); number += 2)
		hold(connection, argv[2], number);
	return 0;
}

/* Generic netlink, as much as it takes to hear of TCMU devices. */
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handler.h"

#define FAMILY "TCM-USER"
#define GROUP "config"
#define ROOM 8192

struct request {
	struct nlmsghdr header;
	struct genlmsghdr generic;
	struct nlattr attribute;
	char name[sizeof(FAMILY)];
};

/* The attribute `type` among those in [at, at + length), or NULL. */
static const struct nlattr *find(const char *at, size_t length, unsigned type)
{
	while (length >= NLA_HDRLEN) {
		const struct nlattr *attribute = (const struct nlattr *)at;
		size_t step = NLA_ALIGN(attribute->nla_len);

		if (attribute->nla_len < NLA_HDRLEN || attribute->nla_len > length)
			return NULL;
		if ((attribute->nla_type & NLA_TYPE_MASK) == type)
			return attribute;
		if (step >= length)
			return NULL;
		at += step;
		length -= step;
	}
	return NULL;
}

static const char *content(const struct nlattr *attribute)
{
	return (const char *)attribute + NLA_HDRLEN;
}

static size_t content_length(const struct nlattr *attribute)
{
	return attribute->nla_len - (size_t)NLA_HDRLEN;
}

/* The number of the group `config` in the answer to GETFAMILY; 0: it has none. */
static uint32_t group_of(const char *answer, size_t length)
{
	const struct nlattr *groups = find(answer, length, CTRL_ATTR_MCAST_GROUPS);
	size_t left = groups ? content_length(groups) : 0;
	const char *at = groups ? content(groups) : NULL;

	/* A list, whose members are numbered from 1. */
	for (unsigned number = 1; groups; number++) {
		const struct nlattr *group = find(at, left, number), *name, *id;

		if (!group)
			return 0;
		name = find(content(group), content_length(group), CTRL_ATTR_MCAST_GRP_NAME);
		id = find(content(group), content_length(group), CTRL_ATTR_MCAST_GRP_ID);
		if (name && id && content_length(id) == sizeof(uint32_t) &&
		    content_length(name) >= sizeof(GROUP) &&
		    memcmp(content(name), GROUP, sizeof(GROUP)) == 0) {
			uint32_t found;

			memcpy(&found, content(id), sizeof(found));
			return found;
		}
	}
	return 0;
}

static int find_group(int fd, uint32_t *group)
{
	struct request request = {
		.header = {.nlmsg_len = sizeof(request),
			   .nlmsg_type = GENL_ID_CTRL,
			   .nlmsg_flags = NLM_F_REQUEST},
		.generic = {.cmd = CTRL_CMD_GETFAMILY, .version = 1},
		.attribute = {.nla_len = NLA_HDRLEN + sizeof(FAMILY),
			      .nla_type = CTRL_ATTR_FAMILY_NAME},
		.name = FAMILY,
	};
	_Alignas(struct nlmsghdr) char answer[ROOM];
	const struct nlmsghdr *header = (const struct nlmsghdr *)answer;
	size_t prefix = NLMSG_HDRLEN + GENL_HDRLEN;
	ssize_t length;

	if (send(fd, &request, sizeof(request), 0) < 0)
		return -errno;
	length = recv(fd, answer, sizeof(answer), 0);
	if (length < 0)
		return -errno;
	if ((size_t)length < prefix || header->nlmsg_type == NLMSG_ERROR ||
	    header->nlmsg_len > (size_t)length || header->nlmsg_len < prefix)
		return -ENOENT; /* target_core_user is not loaded */
	*group = group_of(answer + prefix, header->nlmsg_len - prefix);
	return *group ? 0 : -ENOENT;
}

int tcmu_netlink_open(void)
{
	struct sockaddr_nl address = {.nl_family = AF_NETLINK};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	uint32_t group = 0;
	int error;

	if (fd < 0)
		return -errno;
	error = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	if (!error)
		error = find_group(fd, &group);
	if (!error &&
	    setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0)
		error = -errno;
	if (error) {
		close(fd);
		return error;
	}
	return fd;
}

int tcmu_netlink_read(int fd)
{
	char message[ROOM];
	int changed = 0;

	/* What happened is read from sysfs: a message may have been lost (ENOBUFS). */
	for (;;) {
		ssize_t length = recv(fd, message, sizeof(message), MSG_DONTWAIT);

		if (length < 0 && errno == ENOBUFS)
			changed = 1;
		else if (length < 0)
			return errno == EAGAIN || errno == EINTR ? changed : -errno;
		else
			changed = 1;
	}
}

/* Allocating blocks with no more room than the user who asks has. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <linux/quota.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sealsvc/files.h"

#define SETS _LINUX_CAPABILITY_U32S_3

static int capabilities(long call, struct __user_cap_data_struct *data)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};

	return syscall(call, &header, data) < 0 ? -errno : 0;
}

/* Capabilities are per thread, so no other thread of the service is without it meanwhile. */
int seal_allocate(int fd, uint64_t offset, uint64_t length)
{
	struct __user_cap_data_struct had[SETS], less[SETS];
	int error = capabilities(SYS_capget, had);

	if (error)
		return error;
	memcpy(less, had, sizeof(less));
	less[CAP_TO_INDEX(CAP_SYS_RESOURCE)].effective &= ~CAP_TO_MASK(CAP_SYS_RESOURCE);
	error = capabilities(SYS_capset, less);
	if (error)
		return error;
	error = seal_fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length);
	capabilities(SYS_capset, had);
	return error;
}

/* linux/quota.h counts limits in blocks of 1 KiB (QIF_DQBLKSIZE). */
int seal_quota_room(int fd, int type, uint32_t id, uint64_t *room)
{
	struct if_dqblk quota;

	memset(&quota, 0, sizeof(quota));
	*room = UINT64_MAX;
	if (syscall(SYS_quotactl_fd, fd, QCMD(Q_GETQUOTA, type), id, &quota) < 0)
		return errno == ESRCH || errno == ENOSYS || errno == ENOTSUP ? 0 : -errno;
	if (quota.dqb_bhardlimit) {
		uint64_t limit = quota.dqb_bhardlimit << QIF_DQBLKSIZE_BITS;

		*room = limit > quota.dqb_curspace ? limit - quota.dqb_curspace : 0;
	}
	return 0;
}

/* A copy that is made for another user must do no more than that user could. */
#include "sealsvc/copy.h"

#include <errno.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SETS _LINUX_CAPABILITY_U32S_3

static void drop(struct __user_cap_data_struct *sets, int capability)
{
	struct __user_cap_data_struct *set = sets + CAP_TO_INDEX(capability);

	set->effective &= ~CAP_TO_MASK(capability);
	set->permitted &= ~CAP_TO_MASK(capability);
	set->inheritable &= ~CAP_TO_MASK(capability);
}

/* With CAP_FSETID a write leaves set-user-ID bits (setattr_should_drop_suidgid, fs/attr.c); with
 * CAP_SYS_RESOURCE it goes beyond quotas, and into what ext4 reserves. Capabilities are per thread:
 * call this before there are others. */
int seal_copy_drop_privileges(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct sets[SETS];

	if (syscall(SYS_capget, &header, sets) < 0)
		return -errno;
	drop(sets, CAP_FSETID);
	drop(sets, CAP_SYS_RESOURCE);
	return syscall(SYS_capset, &header, sets) < 0 ? -errno : 0;
}

/* ext4 gives its reserved blocks to user 0, whatever its capabilities (ext4_has_free_clusters). With
 * another fsuid the capabilities that concern files are off; with 0 they are on again. */
int seal_copy_act_as(uint32_t uid)
{
	setfsuid(uid);
	return seal_copy_acts_as() == uid ? 0 : -EPERM;
}

/* No user has the number -1: asking for it changes nothing. */
uint32_t seal_copy_acts_as(void)
{
	return (uint32_t)setfsuid((uid_t)-1);
}

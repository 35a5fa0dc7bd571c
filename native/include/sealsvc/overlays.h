/* Refuses new overlays of unprivileged users on a file system.
 *
 * truncate(2) through an overlay reaches the upper layer's file by notify_change() (fs/overlayfs/inode.c,
 * ovl_setattr), past vfs_truncate(), where fanotify and leases see truncations. But an overlay that can
 * write has a work directory on the file system of its upper layer, and opens that directory while it is
 * mounted (fs/overlayfs/super.c ovl_make_workdir, readdir.c ovl_check_d_type_supported; 6.1 to 7.3 have
 * it). The kernel asks about this open, and a refusal fails the mount.
 */
#ifndef SEALSVC_OVERLAYS_H
#define SEALSVC_OVERLAYS_H

#include <stdint.h>

struct seal_overlays;

/* Creates the fanotify group and the thread. 0 or -errno. */
int seal_overlays_open(struct seal_overlays **out);

/* Stops refusing. */
void seal_overlays_close(struct seal_overlays *overlays);

/* Refuse (EPERM) whoever mounts an overlay with its upper layer on the file system of fd, but for tasks
 * with CAP_SYS_ADMIN in our own user namespace: that is an administrator's act. 1: it was done already, 0:
 * it is done from now on, or -errno. Opening a directory there takes some twenty microseconds longer. */
int seal_overlays_refuse(struct seal_overlays *overlays, int fd);

/* How many mounts were refused so far. */
int64_t seal_overlays_refused(const struct seal_overlays *overlays);

#endif

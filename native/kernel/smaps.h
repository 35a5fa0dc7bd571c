/* MAP_SYNC, as smaps shows it. */
#ifndef SEALSVC_KERNEL_SMAPS_H
#define SEALSVC_KERNEL_SMAPS_H

#include <stddef.h>

#include "vmas.h"

/* Index of the first of `areas` (in order of address, exactly as smaps shows them) that is shared and
 * lacks MAP_SYNC, or `count`: none. -EAGAIN when smaps does not show one of them, -errno. */
int64_t seal_smaps_unsynced(const char *task, const struct vma *areas, size_t count);

#endif

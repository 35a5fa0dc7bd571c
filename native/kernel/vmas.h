/* Walks over the memory areas of a process. */
#ifndef SEALSVC_KERNEL_VMAS_H
#define SEALSVC_KERNEL_VMAS_H

#include <stdint.h>

/* The device is the super block's, which is st_dev of stat(2) on the file systems that can be sealed.
 * On btrfs and overlayfs the two differ and nothing would be found: they are refused before. */
struct vma {
	uint64_t start, end, offset, inode, device;
	int shared, writable;
};

/* Returns non-zero to end the walk. */
typedef int (*vma_visit)(const struct vma *vma, int pid, void *context);

/* Visits the areas that map files and end above `from`, in order of address; `path` is that of a maps
 * file. Returns how many were seen (those without a file are not all counted), or -errno. What a
 * process maps anew or moves (mremap) behind the walk's back is missed: the answer holds for a process
 * that stands still. `by_text` reads the text of maps, which needs no mmap_lock since v6.17
 * (fs/proc/task_mmu.c, lock_vma_range), and not PROCMAP_QUERY, which is faster and needs it in v6.18. */
int64_t seal_vmas_walk(const char *path, uint64_t from, int by_text, int pid, vma_visit visit,
		       void *context);

/* A number in lower-case digits into *out; returns what stands behind the separator after it. */
const char *seal_parse_number(const char *at, unsigned int base, uint64_t *out);

#endif

/* Proofs that nothing is left of a holder, by BPF programs that look at the kernel's own structures
 * (native/bpf/proof.bpf.c). Each call takes the descriptor of its program, and returns -errno when the
 * answer cannot be told: that is no proof. */
#ifndef SEALSVC_PROOF_H
#define SEALSVC_PROOF_H

#include <stddef.h>
#include <stdint.h>

#include "sealsvc/mappings.h" /* seal_rows_free() */
#include "sealsvc/proof_layout.h"

struct seal_proofs {
	int mapped, describe, alive, held, waits,
		referenced; /* descriptors; -1: the kernel refuses it */
};

/* Loads the programs of the file `object`. 0, or -errno with the reason in `why` when not even `mapped`
 * loads (-ENOSYS: built without libbpf). The caller closes the descriptors. */
int seal_proofs_load(const char *object, struct seal_proofs *out, char *why, size_t size);

/* 1 when somebody maps the file of descriptor fd (O_PATH will do), 0 when nobody does. Of a DAX file on a
 * kernel that does not wait for page references: always 1. */
int seal_is_mapped(int mapped, int fd);

/* The description of fd, by which seal_is_alive() knows it again in this boot. 0 or -errno. */
int seal_describe(int describe, int fd, struct seal_description *out);

/* 1 when the description is referenced still: by a descriptor, a mapping, a message in flight, in whatever
 * process; 0 when it is gone. `fd` is another description of the same file. */
int seal_is_alive(int alive, int fd, const struct seal_description *description);

/* What a process maps of a range: SEAL_MAPS_*, or -errno with which nothing can be said about it. */
struct seal_held {
	int32_t pid, maps;
};

/* Looks at all processes, and waits for none: what do they map of bytes [start, start + length) of the file
 * of `fd`? *out has a row for each that maps some of it, and for each of which nothing can be said; free it
 * with seal_rows_free(). Returns how many, or -errno (-EAGAIN: there are new processes all the time).
 *
 * *unseen is 0 when every reference to the description was found in a process: then those of which nothing
 * can be said have none. */
int64_t seal_held(int held, int alive, int fd, const struct seal_description *description,
		  uint64_t start, uint64_t length, struct seal_held **out, int *unseen);

/* 1 when file systems on DAX wait for page references before they free blocks, whether or not anybody maps
 * the file (since v6.15). */
int seal_kernel_waits(int waits);

/* 1 when something refers to one of the `count` page frames from `frame` on, *found the first; else 0.
 * The frames are of persistent memory, on a kernel that does not wait; -ENOTSUP on others. */
int seal_are_referenced(int referenced, uint64_t frame, uint64_t count, uint64_t *found);

#endif

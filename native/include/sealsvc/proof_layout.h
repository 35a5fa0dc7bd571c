/* What native/bpf/proof.bpf.c and those who run its programs share. */
#ifndef SEALSVC_PROOF_LAYOUT_H
#define SEALSVC_PROOF_LAYOUT_H

#include <stdint.h>

/* A description (struct file) as the kernel knows it. The addresses are the kernel's: keep them from
 * users. */
struct seal_description {
	uint64_t file; /* its address; 0: none */
	uint64_t cred; /* that of the credentials it was opened with; they never change */
};

/* The context of every program. `fd` is a descriptor of the caller; what else counts, and what is filled
 * in, the programs say. */
struct seal_proof {
	int32_t fd;
	int32_t answer;
	struct seal_description description;
	uint64_t frame, count; /* page frames: the first, and how many */
	uint64_t start, end;   /* bytes of the file */
	uint64_t memory;       /* address of a task's memory (struct mm_struct); 0: it has none */
	uint64_t table;	       /* address of its table of descriptors (struct files_struct) */
	int32_t task;
	uint32_t areas, descriptors; /* how many references to the description they are */
	int32_t unused;
};

/* What a task maps of the range. */
enum {
	SEAL_MAPS_BY_DESCRIPTION = 1,
	SEAL_MAPS_OTHERWISE = 2, /* by another description of the file */
};

_Static_assert(sizeof(struct seal_proof) == 88, "seal_proof has no holes");

#endif

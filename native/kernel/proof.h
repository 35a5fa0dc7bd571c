/* What proof.c and held.c share. */
#ifndef SEALSVC_KERNEL_PROOF_H
#define SEALSVC_KERNEL_PROOF_H

#include "sealsvc/proof.h"

/* Runs a program of native/bpf/proof.bpf.c: its answer, or -errno. */
int seal_proof_run(int program, struct seal_proof *question);

#endif

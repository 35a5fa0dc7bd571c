/* In place of proof_load.c where libbpf or clang was not there at build time. */
#include <errno.h>
#include <stdio.h>

#include "sealsvc/proof.h"

int seal_proofs_load(const char *object, struct seal_proofs *out, char *why, size_t size)
{
	(void)object, (void)out;
	snprintf(why, size, "built without libbpf or without clang");
	return -ENOSYS;
}

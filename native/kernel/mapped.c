/* Runs the BPF program that knows who maps a file. Apart from bpf.c: the keeper has no libbpf. */
#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sealsvc/bpf_layout.h"
#include "sealsvc/mappings.h"

int seal_is_mapped(int prover, int fd)
{
	struct seal_bpf_question question = {fd, 0};
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.test.prog_fd = (uint32_t)prover;
	attributes.test.ctx_in = (uint64_t)(uintptr_t)&question; /* and the answer comes there */
	attributes.test.ctx_size_in = sizeof(question);
	if (syscall(SYS_bpf, BPF_PROG_RUN, &attributes, sizeof(attributes)))
		return -errno;
	return attributes.test.retval ? (int)attributes.test.retval : question.mapped;
}

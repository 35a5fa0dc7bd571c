/* Runs the programs of native/bpf/proof.bpf.c. Apart from proof_load.c: the keeper has no libbpf. */
#include "proof.h"

#include <errno.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The program's answer, or -errno. */
int seal_proof_run(int program, struct seal_proof *question)
{
	union bpf_attr attributes;

	memset(&attributes, 0, sizeof(attributes));
	attributes.test.prog_fd = (uint32_t)program;
	attributes.test.ctx_in = (uint64_t)(uintptr_t)question; /* the kernel writes it back */
	attributes.test.ctx_size_in = sizeof(*question);
	if (syscall(SYS_bpf, BPF_PROG_RUN, &attributes, sizeof(attributes)))
		return -errno;
	return attributes.test.retval ? (int)attributes.test.retval : question->answer;
}

int seal_is_mapped(int mapped, int fd)
{
	struct seal_proof question = {.fd = fd};

	return seal_proof_run(mapped, &question);
}

int seal_describe(int describe, int fd, struct seal_description *out)
{
	struct seal_proof question = {.fd = fd};
	int error = seal_proof_run(describe, &question);

	*out = question.description;
	return error;
}

int seal_is_alive(int alive, int fd, const struct seal_description *description)
{
	struct seal_proof question = {.fd = fd, .description = *description};

	return seal_proof_run(alive, &question);
}

int seal_kernel_waits(int waits)
{
	struct seal_proof question = {.fd = -1};

	return seal_proof_run(waits, &question);
}

/* bpf_loop() goes round at most 1 << 23 times (kernel/bpf/bpf_iter.c, BPF_MAX_LOOPS); a run keeps its
 * processor from others for not much longer than a millisecond. */
#define FRAMES 65536

int seal_are_referenced(int referenced, uint64_t frame, uint64_t count, uint64_t *found)
{
	do {
		struct seal_proof question = {
			.fd = -1,
			.frame = frame,
			.count = count < FRAMES ? count : FRAMES,
		};
		int answer = seal_proof_run(referenced, &question);

		if (answer > 0)
			*found = question.frame;
		if (answer)
			return answer;
		frame += question.count;
		count -= question.count;
	} while (count);
	return 0;
}

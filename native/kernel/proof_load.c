/* Loads the programs of native/bpf/proof.bpf.c. */
#include "sealsvc/proof.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

static int be_quiet(enum libbpf_print_level level, const char *format, va_list arguments)
{
	(void)level, (void)format, (void)arguments;
	return 0;
}

/* In the order of struct seal_proofs. */
static const char *const names[] = {"mapped", "describe", "alive", "held", "waits", "referenced"};
#define PROGRAMS (sizeof(names) / sizeof(names[0]))
enum { MAPPED = 1 << 0, HELD = 1 << 3, ALL = (1 << PROGRAMS) - 1 };

/* What the kernel may refuse: before v6.10 `held`. To load each by itself would take six times as long. */
static const unsigned int sets[] = {ALL, ALL & ~HELD, MAPPED};

static int duplicate(const struct bpf_object *object, const char *name)
{
	struct bpf_program *program = bpf_object__find_program_by_name(object, name);
	int fd = program ? fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 0) : -1;

	return program && fd < 0 ? -errno : fd;
}

/* Those of the set, into `fds`; all or none. 0 or -errno. */
static int load_set(const char *path, unsigned int set, int fds[PROGRAMS])
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program;
	int error = 0;

	if (!object)
		return -errno;
	for (size_t i = 0; i < PROGRAMS; i++) {
		program = bpf_object__find_program_by_name(object, names[i]);
		if (program)
			bpf_program__set_autoload(program, !!(set & 1U << i));
	}
	if (bpf_object__load(object))
		error = -errno;
	for (size_t i = 0; i < PROGRAMS; i++)
		fds[i] = !error && set & 1U << i ? duplicate(object, names[i]) : -1;
	bpf_object__close(object);
	return error;
}

int seal_proofs_load(const char *object, struct seal_proofs *out, char *why, size_t size)
{
	libbpf_print_fn_t before = libbpf_set_print(be_quiet);
	int fds[PROGRAMS], error = -ENOENT;

	for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]) && error; i++)
		error = load_set(object, sets[i], fds);
	libbpf_set_print(before);
	if (error)
		snprintf(why, size, "loading the BPF programs for proofs: %s", strerror(-error));
	else
		*out = (struct seal_proofs){fds[0], fds[1], fds[2], fds[3], fds[4], fds[5]};
	return error;
}

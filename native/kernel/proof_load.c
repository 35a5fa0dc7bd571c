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

/* One program alone: that the kernel refuses one says nothing about the others. */
static int load_one(const char *path, const char *name)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program;
	int fd = -1;

	if (!object)
		return -errno;
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, !strcmp(bpf_program__name(program), name));
	if (bpf_object__load(object)) {
		fd = -errno;
	} else {
		program = bpf_object__find_program_by_name(object, name);
		fd = program ? fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 0) : -ENOENT;
		if (program && fd < 0)
			fd = -errno;
	}
	bpf_object__close(object);
	return fd;
}

int seal_proofs_load(const char *object, struct seal_proofs *out, char *why, size_t size)
{
	libbpf_print_fn_t before = libbpf_set_print(be_quiet);

	out->mapped = load_one(object, "mapped");
	if (out->mapped >= 0) {
		out->describe = load_one(object, "describe");
		out->alive = load_one(object, "alive");
		out->held = load_one(object, "held");
		out->waits = load_one(object, "waits");
		out->referenced = load_one(object, "referenced");
	}
	libbpf_set_print(before);
	if (out->mapped < 0)
		snprintf(why, size, "loading the BPF programs for proofs: %s",
			 strerror(-out->mapped));
	return out->mapped < 0 ? out->mapped : 0;
}

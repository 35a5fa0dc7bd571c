/* Loading and attaching, with whatever of the programs this kernel takes. */
#include "bpf_internal.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define BPFFS_MAGIC 0xcafe4a11

/* Which programs this kernel has a place for */

static int parameters_of(const struct btf *btf, const char *function)
{
	const struct btf_type *type;
	int id = btf__find_by_name_kind(btf, function, BTF_KIND_FUNC);

	if (id < 0)
		return -1;
	type = btf__type_by_id(btf, btf__type_by_id(btf, id)->type);
	return type ? btf_vlen(type) : -1;
}

/* What it leaves behind is found out in time: bpf_barrier.c and native/bpf/skipped.h. */
static int ends_an_operation(const char *name)
{
	size_t length = strlen(name);

	return length > 4 && !strcmp(name + length - 4, "_end");
}

static void choose(struct seal_bpf *bpf, const struct btf *btf)
{
	bpf->traceable = UINT64_MAX;
	/* A copy asks for each permission once since v6.8, which brought this function. */
	if (parameters_of(btf, "splice_file_range") < 0)
		bpf->traceable &= ~(uint64_t)SEAL_BPF_TRACED_COPY;
	for (size_t i = 0; i < BPF_PROGRAMS; i++) {
		const struct bpf_program_need *need = &bpf_program_needs[i];
		struct seal_bpf_program *program = &bpf->programs[i];
		int parameters = parameters_of(btf, need->function);

		program->name = need->name;
		program->state = SEAL_BPF_ON;
		program->spared = need->traced & bpf->traceable || ends_an_operation(need->name);
		program->why[0] = '\0';
		if (need->purpose && parameters_of(btf, need->purpose) < 0)
			program->state = SEAL_BPF_NEEDLESS;
		else if (parameters < 0)
			program->state = SEAL_BPF_OFF;
		else if (need->parameters && parameters != need->parameters)
			program->state = SEAL_BPF_NEEDLESS;
		if (program->state == SEAL_BPF_OFF)
			snprintf(program->why, sizeof(program->why),
				 "the kernel's BTF does not have %s", need->function);
	}
}

/* `without` names programs, with commas between. */
static void leave_out(struct seal_bpf *bpf, const char *without)
{
	char list[512], *at = list, *name;

	snprintf(list, sizeof(list), "%s", without ? without : "");
	while ((name = strsep(&at, ",")))
		for (size_t i = 0; i < BPF_PROGRAMS; i++)
			if (!strcmp(name, bpf->programs[i].name)) {
				bpf->programs[i].state = SEAL_BPF_OFF;
				snprintf(bpf->programs[i].why, sizeof(bpf->programs[i].why),
					 "left out by the caller");
			}
}

/* Loading */

/* The programs' only constants: libbpf keeps them in a map of its own. */
static int tell_set(struct bpf_object *object, const struct seal_bpf_set *set)
{
	struct bpf_map *map;

	bpf_object__for_each_map(map, object)
	{
		if (bpf_map__is_internal(map) && bpf_map__value_size(map) == sizeof(*set))
			return bpf_map__set_initial_value(map, set, sizeof(*set));
	}
	return -ENOEXEC;
}

/* With all programs that are on. */
static int load_once(struct seal_bpf *bpf, const char *path, const char *directory)
{
	struct bpf_object *object = bpf_object__open_file(path, 0);
	struct seal_bpf_set set = {.id = bpf_now()};
	int result = 0;

	if (!object)
		return -errno;
	for (size_t i = 0; i < BPF_PROGRAMS; i++) {
		struct bpf_program *program =
			bpf_object__find_program_by_name(object, bpf->programs[i].name);

		if (program)
			bpf_program__set_autoload(program, bpf->programs[i].state == SEAL_BPF_ON);
		else
			result = -ENOEXEC;
		if (bpf->programs[i].state == SEAL_BPF_ON)
			set.traced |= bpf_program_needs[i].traced & bpf->traceable;
	}
	if (!result)
		result = tell_set(object, &set);
	if (!result)
		result = bpf_pin_maps_below(object, directory);
	if (!result)
		result = bpf_object__load(object);
	if (result) {
		bpf_object__close(object);
		return result;
	}
	bpf->object = object;
	return 0;
}

/* Turn off the program that did not load, and say why. 0 when it is not known which. */
static int turn_off(struct seal_bpf *bpf, int error)
{
	for (size_t i = 0; i < BPF_PROGRAMS; i++) {
		struct seal_bpf_program *program = &bpf->programs[i];

		if (program->state == SEAL_BPF_ON && bpf_log_is_about(program->name)) {
			program->state = SEAL_BPF_OFF;
			bpf_explain(program->why, sizeof(program->why), "does not load", error);
			return 1;
		}
	}
	return 0;
}

static int check_layout(const char *directory, char *why, size_t size)
{
	struct seal_bpf_control control = {0};
	struct bpf_map_info info = {0};
	uint32_t length = sizeof(info), zero = 0;
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/maps/seal_control", directory);
	fd = bpf_obj_get(path);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!bpf_obj_get_info_by_fd(fd, &info, &length) && info.value_size == sizeof(control))
		bpf_map_lookup_elem(fd, &zero, &control);
	close(fd);
	/* 0: whoever made it did not come as far as to write it. */
	if (control.layout == SEAL_BPF_LAYOUT ||
	    (control.layout == 0 && info.value_size == sizeof(control)))
		return 0;
	snprintf(why, size,
		 "the maps pinned in %s are of another version of sealsvc (layout %u, not %d);"
		 " release them with it",
		 directory, control.layout, SEAL_BPF_LAYOUT);
	return -EPROTO;
}

static int make_directories(const char *directory, char *why, size_t size)
{
	char path[PATH_MAX], *slash;
	struct statfs fs;

	snprintf(path, sizeof(path), "%s", directory);
	slash = strrchr(path, '/');
	if (slash && slash != path)
		*slash = '\0';
	if (statfs(path, &fs) || (uint32_t)fs.f_type != BPFFS_MAGIC) {
		snprintf(why, size, "no bpffs is mounted at %s (mount -t bpf bpf %s)", path, path);
		return -ENODEV;
	}
	static const char *const below[] = {"", "/maps", "/links"};
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s%s", directory, below[i]);
		if (mkdir(path, 0700) && errno != EEXIST) {
			int error = errno;

			snprintf(why, size, "mkdir %s: %s", path, strerror(error));
			return -error;
		}
	}
	return 0;
}

int bpf_load(struct seal_bpf *bpf, const char *path, const char *directory, const char *without,
	     char *why, size_t size)
{
	struct btf *btf;
	int result;

	bpf_log_begin();
	btf = btf__load_vmlinux_btf();
	if (!btf) {
		snprintf(why, size, "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %s",
			 strerror(errno));
		return -ENOTSUP;
	}
	choose(bpf, btf);
	leave_out(bpf, without);
	btf__free(btf);
	result = make_directories(directory, why, size);
	if (!result)
		result = check_layout(directory, why, size);
	if (result)
		return result;
	/* Without privilege no program loads: there is none to do without. */
	do {
		bpf_log_begin();
		result = load_once(bpf, path, directory);
	} while (result && result != -EPERM && turn_off(bpf, result));
	if (result)
		bpf_explain(why, size, "loading BPF LSM programs", result);
	return result;
}

/* Attaching and pinning */

int bpf_attach(struct seal_bpf *bpf)
{
	int attached = 0;

	for (size_t i = 0; i < BPF_PROGRAMS; i++) {
		struct seal_bpf_program *program = &bpf->programs[i];
		struct bpf_program *loaded =
			bpf_object__find_program_by_name(bpf->object, program->name);

		if (program->state != SEAL_BPF_ON)
			continue;
		bpf->links[i] = bpf_program__attach(loaded);
		if (bpf->links[i]) {
			attached++;
		} else {
			program->state = SEAL_BPF_OFF;
			bpf_explain(program->why, sizeof(program->why), "does not attach", -errno);
		}
	}
	return attached ? 0 : -EOPNOTSUPP;
}

static int is_known(const char *name)
{
	for (size_t i = 0; i < BPF_PROGRAMS; i++)
		if (!strcmp(name, bpf_program_needs[i].name))
			return 1;
	return 0;
}

/* Links of programs that are no more, and those of a start that was cut off. */
static void sweep(const char *directory)
{
	char path[PATH_MAX + NAME_MAX + 8];
	struct dirent *entry;
	DIR *listing;

	snprintf(path, sizeof(path), "%s/links", directory);
	listing = opendir(path);
	while (listing && (entry = readdir(listing))) {
		if (entry->d_name[0] == '.' || is_known(entry->d_name) ||
		    bpf_is_trip(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "%s/links/%s", directory, entry->d_name);
		unlink(path);
	}
	if (listing)
		closedir(listing);
}

/* A program that does not load now leaves the old one where it is. */
int bpf_pin(struct seal_bpf *bpf, const char *directory)
{
	int error;

	for (size_t i = 0; i < BPF_PROGRAMS; i++) {
		error = bpf->links[i]
				? bpf_pin_link(bpf->links[i], directory, bpf->programs[i].name)
				: 0;
		if (error)
			return error;
	}
	sweep(directory);
	return 0;
}

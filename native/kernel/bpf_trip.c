/* The tripwire's programs: loading them once their file system is there, and what they tell. */
#include "bpf_internal.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* In the order of enum seal_trip_function. `instead_of`: it is needed where that one cannot be had;
 * itself: always. `optional`: a kernel without the function has nothing that it would be for. */
static const struct trip {
	const char *name; /* of the program */
	const char *type; /* of the file system, and its module's name */
	const char *function;
	enum seal_trip_function instead_of;
	int optional;
} trips[] = {
	{"xfs_del_extent", "xfs", "xfs_bmap_del_extent_real", SEAL_TRIP_XFS_DEL_EXTENT, 0},
	{"xfs_bunmapi", "xfs", "__xfs_bunmapi", SEAL_TRIP_XFS_DEL_EXTENT, 0},
	{"xfs_collapse", "xfs", "xfs_bmap_collapse_extents", SEAL_TRIP_XFS_COLLAPSE, 0},
	{"xfs_insert", "xfs", "xfs_bmap_insert_extents", SEAL_TRIP_XFS_INSERT, 0},
	{"xfs_swap", "xfs", "xfs_swap_extents", SEAL_TRIP_XFS_SWAP, 0},
	{"xfs_repair", "xfs", "xrep_bmap", SEAL_TRIP_XFS_REPAIR, 1}, /* since v6.8, if configured */
	{"ext4_remove", "ext4", "ext4_ext_remove_space", SEAL_TRIP_EXT4_REMOVE, 0},
	{"ext4_shift", "ext4", "ext4_ext_shift_extents", SEAL_TRIP_EXT4_SHIFT, 0},
	{"ext4_swap", "ext4", "ext4_swap_extents", SEAL_TRIP_EXT4_SWAP, 0},
	{"ext4_move", "ext4", "ext4_move_extents", SEAL_TRIP_EXT4_SWAP, 0},
	{"ext4_swap_boot", "ext4", "swap_inode_data", SEAL_TRIP_EXT4_SWAP_BOOT, 0},
	{"ext4_ind_remove", "ext4", "ext4_ind_remove_space", SEAL_TRIP_EXT4_IND_REMOVE, 0},
	{"ext4_ind_truncate", "ext4", "ext4_ind_truncate", SEAL_TRIP_EXT4_IND_TRUNCATE, 0},
};
_Static_assert(sizeof(trips) / sizeof(trips[0]) == SEAL_TRIP_FUNCTIONS, "a row for each function");

int bpf_is_trip(const char *name)
{
	for (size_t i = 0; i < SEAL_TRIP_FUNCTIONS; i++)
		if (!strcmp(name, trips[i].name))
			return 1;
	return 0;
}

const char *seal_trip_function(uint32_t function)
{
	return function < SEAL_TRIP_FUNCTIONS ? trips[function].function : "a function not known";
}

/* Loading */

static int has(const struct btf *btf, const char *function)
{
	return btf && btf__find_by_name_kind(btf, function, BTF_KIND_FUNC) >= 0;
}

/* Those of the type, by what the kernel has. Returns how many are to be tried. */
static int choose(struct seal_bpf *bpf, const char *type)
{
	struct btf *kernel = btf__load_vmlinux_btf();
	struct btf *module = kernel ? btf__load_module_btf(type, kernel) : NULL;
	int chosen = 0;

	for (size_t i = 0; i < SEAL_TRIP_FUNCTIONS; i++) {
		struct seal_bpf_program *program = &bpf->trip_programs[i];

		if (strcmp(trips[i].type, type))
			continue;
		*program = (struct seal_bpf_program){.name = trips[i].name, .state = SEAL_BPF_ON};
		/* Where it is built in, there is no module. */
		if (has(module ? module : kernel, trips[i].function)) {
			chosen++;
			continue;
		}
		program->state = trips[i].optional ? SEAL_BPF_NEEDLESS : SEAL_BPF_OFF;
		snprintf(program->why, sizeof(program->why), "the BTF of %s does not have %s", type,
			 trips[i].function);
	}
	btf__free(module);
	btf__free(kernel);
	return chosen;
}

static struct bpf_object *load(struct seal_bpf *bpf, const char *path, const char *directory,
			       const char *type)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	int error = object ? 0 : -errno;

	for (size_t i = 0; i < SEAL_TRIP_FUNCTIONS && !error; i++) {
		struct bpf_program *program =
			bpf_object__find_program_by_name(object, trips[i].name);

		if (program)
			bpf_program__set_autoload(program,
						  bpf->trip_programs[i].state == SEAL_BPF_ON);
		else if (!strcmp(trips[i].type, type))
			error = -ENOEXEC;
	}
	if (!error)
		error = bpf_pin_maps_below(object, directory);
	if (!error)
		error = bpf_object__load(object);
	if (!error)
		return object;
	bpf_object__close(object);
	errno = -error;
	return NULL;
}

static void attach(struct seal_bpf *bpf, struct bpf_object *object, const char *directory, size_t i)
{
	struct seal_bpf_program *program = &bpf->trip_programs[i];
	int error;

	if (trips[i].instead_of != i &&
	    bpf->trip_programs[trips[i].instead_of].state == SEAL_BPF_ON) {
		program->state = SEAL_BPF_NEEDLESS;
		return;
	}
	bpf->trip_links[i] =
		bpf_program__attach(bpf_object__find_program_by_name(object, program->name));
	error = bpf->trip_links[i] ? bpf_pin_link(bpf->trip_links[i], directory, program->name)
				   : -errno;
	if (!error)
		return;
	program->state = SEAL_BPF_OFF;
	bpf_explain(program->why, sizeof(program->why), "does not attach", error);
	if (bpf->trip_links[i])
		bpf_link__destroy(bpf->trip_links[i]);
	bpf->trip_links[i] = NULL;
}

int seal_bpf_trip(struct seal_bpf *bpf, const char *path, const char *directory, const char *type)
{
	struct bpf_object *object = NULL;
	int on = 0, error = 0;

	if (choose(bpf, type)) {
		object = load(bpf, path, directory, type);
		error = object ? 0 : -errno;
	}
	for (size_t i = 0; i < SEAL_TRIP_FUNCTIONS; i++) {
		struct seal_bpf_program *program = &bpf->trip_programs[i];

		if (strcmp(trips[i].type, type) || program->state != SEAL_BPF_ON)
			continue;
		if (object) {
			attach(bpf, object, directory, i);
			bpf->trip_objects[i] = object;
		} else {
			program->state = SEAL_BPF_OFF;
			bpf_explain(program->why, sizeof(program->why), "does not load", error);
		}
		on += program->state == SEAL_BPF_ON;
	}
	return on;
}

size_t seal_bpf_trip_programs(const struct seal_bpf *bpf, struct seal_bpf_program *out, size_t max)
{
	size_t count = 0;

	for (size_t i = 0; i < SEAL_TRIP_FUNCTIONS && count < max; i++)
		if (bpf->trip_programs[i].name)
			out[count++] = bpf->trip_programs[i];
	return count;
}

void bpf_close_trips(struct seal_bpf *bpf)
{
	struct bpf_object *last = NULL;

	for (size_t i = 0; i < SEAL_TRIP_FUNCTIONS; i++) {
		if (bpf->trip_links[i])
			bpf_link__destroy(bpf->trip_links[i]);
		/* The programs of one object stand side by side. */
		if (bpf->trip_objects[i] && bpf->trip_objects[i] != last)
			bpf_object__close(bpf->trip_objects[i]);
		if (bpf->trip_objects[i])
			last = bpf->trip_objects[i];
	}
}

/* What they tell */

int bpf_take_trip(void *context, void *data, size_t size)
{
	struct seal_bpf *bpf = context;

	if (size < sizeof(struct seal_bpf_trip) || bpf->trip_count == SEAL_BPF_TRIPS)
		return 0;
	memcpy(&bpf->trips[bpf->trip_count++], data, sizeof(struct seal_bpf_trip));
	return bpf->trip_count == SEAL_BPF_TRIPS ? -ENOSPC : 0; /* stops after this one */
}

size_t seal_bpf_trips(struct seal_bpf *bpf, struct seal_bpf_trip *out, size_t max)
{
	size_t count = bpf->trip_count < max ? bpf->trip_count : max;

	memcpy(out, bpf->trips, count * sizeof(*out));
	memmove(bpf->trips, bpf->trips + count, (bpf->trip_count - count) * sizeof(*out));
	bpf->trip_count -= count;
	return count;
}

/* Symbols */

int seal_symbolise(const uint64_t *addresses, size_t count, struct seal_symbol *out)
{
	FILE *symbols = fopen("/proc/kallsyms", "re");
	unsigned long long address;
	char line[512], name[SEAL_SYMBOL];

	if (!symbols)
		return -errno;
	memset(out, 0, count * sizeof(*out));
	while (fgets(line, sizeof(line), symbols)) {
		if (sscanf(line, "%llx %*c %63s", &address, name) != 2)
			continue;
		for (size_t i = 0; i < count; i++)
			if (address && address <= addresses[i] && address >= out[i].address) {
				out[i].address = address;
				memcpy(out[i].name, name, sizeof(name));
			}
	}
	fclose(symbols);
	return 0;
}

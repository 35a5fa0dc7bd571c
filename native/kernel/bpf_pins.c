/* What is pinned below a directory of bpffs: maps/ and links/. */
#include "bpf_internal.h"

#include <bpf/bpf.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int bpf_pin_maps_below(struct bpf_object *object, const char *directory)
{
	struct bpf_map *map;
	char path[PATH_MAX];

	bpf_object__for_each_map(map, object)
	{
		if (bpf_map__is_internal(map))
			continue;
		snprintf(path, sizeof(path), "%s/maps/%s", directory, bpf_map__name(map));
		if (bpf_map__set_pin_path(map, path))
			return -errno;
	}
	return 0;
}

/* The rename drops the old link, after the new one is in force. */
int bpf_pin_link(struct bpf_link *link, const char *directory, const char *name)
{
	char fresh[PATH_MAX], path[PATH_MAX];

	/* bpffs allows no dots in names. */
	snprintf(path, sizeof(path), "%s/links/%s", directory, name);
	snprintf(fresh, sizeof(fresh), "%s/links/%s_new", directory, name);
	unlink(fresh);
	return bpf_link__pin(link, fresh) || rename(fresh, path) ? -errno : 0;
}

static int unlink_all(const char *directory)
{
	char path[PATH_MAX + NAME_MAX + 2];
	struct dirent *entry;
	DIR *listing = opendir(directory);

	if (!listing)
		return -errno;
	while ((entry = readdir(listing))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		unlink(path);
	}
	closedir(listing);
	return rmdir(directory) ? -errno : 0;
}

static int empty_directory(const char *directory, const char *name)
{
	char path[PATH_MAX];
	int result;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	/* A listing may pass over entries while others go. */
	for (int i = 0; i < 4; i++) {
		result = unlink_all(path);
		if (result != -ENOTEMPTY)
			break;
	}
	return result == -ENOENT ? 0 : result;
}

/* The kernel frees programs some time after their last pin is gone: until then they would go on
 * refusing. Without an entry they refuse nothing. */
static void forget_files(const char *directory)
{
	struct seal_bpf_file file;
	char path[PATH_MAX];
	int map;

	snprintf(path, sizeof(path), "%s/maps/seal_files", directory);
	map = bpf_obj_get(path);
	if (map < 0)
		return;
	while (!bpf_map_get_next_key(map, NULL, &file) && !bpf_map_delete_elem(map, &file))
		;
	close(map);
}

int seal_bpf_unpin(const char *directory)
{
	int links, maps;

	forget_files(directory);
	links = empty_directory(directory, "links");
	maps = empty_directory(directory, "maps");
	if (links || maps)
		return links ? links : maps;
	return rmdir(directory) && errno != ENOENT ? -errno : 0;
}

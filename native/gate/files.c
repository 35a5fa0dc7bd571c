/* The table of watched files and their guards. */
#include <stdlib.h>
#include <unistd.h>

#include "internal.h"

static struct file **bucket(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	uint64_t hash = (inode ^ device << 32) * UINT64_C(0x9e3779b97f4a7c15);

	return &gate->files[hash >> 52];
}

struct file *gate_find_file(struct seal_gate *gate, uint64_t device, uint64_t inode)
{
	struct file *file = *bucket(gate, device, inode);

	while (file && (file->inode != inode || file->device != device))
		file = file->next;
	return file;
}

struct file *gate_add_file(struct seal_gate *gate, const struct stat *st)
{
	struct file **at = bucket(gate, st->st_dev, st->st_ino);
	struct file *file = calloc(1, sizeof(*file));

	if (!file)
		return NULL;
	file->path_fd = -1;
	list_init(&file->waiters);
	file->device = st->st_dev;
	file->inode = st->st_ino;
	file->next = *at;
	*at = file;
	gate->counters.files++;
	return file;
}

void gate_free_file(struct seal_gate *gate, struct file *file)
{
	struct file **at = bucket(gate, file->device, file->inode);

	while (*at != file)
		at = &(*at)->next;
	*at = file->next;
	if (file->path_fd >= 0)
		close(file->path_fd);
	guards_clear(&file->guards);
	free(file->passages.at);
	free(file);
	gate->counters.files--;
}

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/vector.h"
#include "internal.h"

static struct kept *find(struct store *store, const char *name)
{
	for (size_t i = 0; i < store->count; i++)
		if (strncmp(store->at[i].name, name, KEEPER_NAME) == 0)
			return &store->at[i];
	return NULL;
}

int store_keep(struct store *store, const char *name, int fd)
{
	struct kept *there;

	if (name[0] == '\0' || memchr(name, '\0', KEEPER_NAME) == NULL) {
		close(fd);
		return -EINVAL;
	}
	there = find(store, name);
	if (there) {
		close(there->fd);
		there->fd = fd;
		return 0;
	}
	there = VECTOR_ADD(store, 64);
	if (!there) {
		close(fd);
		return -ENOMEM;
	}
	memset(there->name, 0, sizeof(there->name));
	strcpy(there->name, name);
	there->fd = fd;
	return 0;
}

int store_drop(struct store *store, const char *name)
{
	struct kept *there = find(store, name);

	if (!there)
		return -ENOENT;
	close(there->fd);
	*there = store->at[--store->count];
	return 0;
}

/* The pipes of pins go first: a file whose pages they hold may hang whoever closes it last. */
static void clear_pipes(struct store *store)
{
	struct stat st;

	for (size_t i = 0; i < store->count;)
		if (fstat(store->at[i].fd, &st) == 0 && S_ISFIFO(st.st_mode)) {
			close(store->at[i].fd);
			store->at[i] = store->at[--store->count];
		} else {
			i++;
		}
}

void store_clear(struct store *store)
{
	clear_pipes(store);
	while (store->count)
		close(store->at[--store->count].fd);
	free(store->at);
	memset(store, 0, sizeof(*store));
}

/* A walk through scattered data, block by block. Inline: it is a step of the loops over blocks. */
#ifndef SEALSVC_INTEGRITY_WALK_H
#define SEALSVC_INTEGRITY_WALK_H

#include <stddef.h>
#include <sys/uio.h>

struct walk {
	const struct iovec *data;
	int count, at;
	size_t offset; /* in data[at] */
};

static inline void skip_empty(struct walk *walk)
{
	while (walk->at < walk->count && walk->offset == walk->data[walk->at].iov_len) {
		walk->at++;
		walk->offset = 0;
	}
}

/* `wanted` bytes in one piece, or NULL when they lie in several. */
static inline const void *in_one_piece(struct walk *walk, size_t wanted)
{
	const struct iovec *piece;
	const char *found;

	skip_empty(walk);
	if (walk->at == walk->count)
		return "";
	piece = &walk->data[walk->at];
	if (piece->iov_len - walk->offset < wanted)
		return NULL;
	found = (const char *)piece->iov_base + walk->offset;
	walk->offset += wanted;
	return found;
}

#endif

/* An array that grows: struct { T *at; size_t count, room; }, all zeros when empty. free(vector.at) ends it. */
#ifndef SEALSVC_BASE_VECTOR_H
#define SEALSVC_BASE_VECTOR_H

#include <stddef.h>
#include <stdlib.h>

/* `at`, with room for one more than `count` items of `size` bytes; it may have moved. `first` is the room it begins
 * with. NULL: no memory, and nothing has changed. */
static inline void *vector_grown(void *at, size_t count, size_t *room, size_t first, size_t size)
{
	size_t more = *room ? 2 * *room : first;

	if (count < *room)
		return at;
	at = more > count ? reallocarray(at, more, size) : NULL;
	if (at)
		*room = more;
	return at;
}

/* The place of one more item, whose content means nothing yet; NULL: no memory, and nothing has changed. */
#define VECTOR_ADD(vector, first)                                                                  \
	({                                                                                         \
		void *grown_vector = vector_grown((vector)->at, (vector)->count, &(vector)->room,  \
						  (first), sizeof(*(vector)->at));                 \
		if (grown_vector)                                                                  \
			(vector)->at = grown_vector;                                               \
		grown_vector ? &(vector)->at[(vector)->count++] : NULL;                            \
	})

#endif

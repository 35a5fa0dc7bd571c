/* What a function has taken goes back at the end of its scope, by whichever way that is left. errno is kept. */
#ifndef SEALSVC_BASE_CLEANUP_H
#define SEALSVC_BASE_CLEANUP_H

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_close(const int *fd)
{
	int error = errno;

	if (*fd >= 0)
		close(*fd);
	errno = error;
}

/* `pointer` is the address of a pointer of any type. */
static inline void cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

static inline void cleanup_unlock(pthread_mutex_t **lock)
{
	pthread_mutex_unlock(*lock);
}

static inline pthread_mutex_t *cleanup_lock(pthread_mutex_t *lock)
{
	pthread_mutex_lock(lock);
	return lock;
}

/* Before a descriptor (-1: none) or a pointer that belongs to the scope. */
#define AUTO_CLOSE __attribute__((cleanup(cleanup_close)))
#define AUTO_FREE __attribute__((cleanup(cleanup_free)))

/* The mutex is held from here to the end of the scope. */
#define SCOPED_LOCK(lock)                                                                          \
	__attribute__((cleanup(cleanup_unlock), unused)) pthread_mutex_t *scoped_lock =            \
		cleanup_lock(lock)

/* What a scope gives away is its own no more. */
static inline int keep_fd(int *fd)
{
	int kept = *fd;

	*fd = -1;
	return kept;
}

#define KEEP_POINTER(pointer)                                                                      \
	({                                                                                         \
		__typeof__(pointer) kept_pointer = (pointer);                                      \
		(pointer) = NULL;                                                                  \
		kept_pointer;                                                                      \
	})

#endif

/* Copies to and from a mapped file: an I/O error of the medium is an error here and not the end of the
 * process, and what is written to persistent memory goes past the processor's caches. */
#ifndef EXPORT_MEMORY_H
#define EXPORT_MEMORY_H

#include <stddef.h>

/* Installs the process's SIGBUS handler, once. A SIGBUS outside of the functions below goes on to the
 * handler that was there before. 0 or -errno. */
int memory_init(void);

/* Each returns 0, or -EIO: the kernel had no page to give (a bad block, a file that became shorter). */
int memory_load(void *to, const void *mapped, size_t length);
int memory_store(void *mapped, const void *from, size_t length);
int memory_clear(void *mapped, size_t length);
/* As the above, and in the persistence domain of a DAX mapping (MAP_SYNC) when they return. */
int memory_store_persistent(void *mapped, const void *from, size_t length);
int memory_clear_persistent(void *mapped, size_t length);
int memory_compare(const void *mapped, const void *expected, size_t length, size_t *at);

#endif

#include "sealsvc/populate.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

int seal_populate_write(int fd, uint64_t offset, uint64_t length)
{
	int error = 0;
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);

	if (at == MAP_FAILED)
		return -errno;
	while (madvise(at, length, MADV_POPULATE_WRITE) < 0) {
		if (errno == EINTR || errno == EAGAIN)
			continue;
		error = -errno;
		break;
	}
	munmap(at, length);
	return error;
}

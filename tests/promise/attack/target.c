/* Files of the epoch, by every way to come by one. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attack.h"

const char *target_path(const struct op *op, char path[32])
{
	snprintf(path, 32, "%c%u", op->how == HOW_LINK ? 'h' : 'f', op->file);
	return path;
}

/* An exclusively sealed file cannot be sealed while somebody has it open: it is opened each time. */
static int held(const struct attacker *a, const struct op *op)
{
	if (a->control->targets[op->file].exclusive)
		return -1;
	return op->how == HOW_HELD_READ ? a->held_read[op->file] : a->held[op->file];
}

int target_open(struct attacker *a, const struct op *op, int flags)
{
	char path[32];
	int fd = held(a, op);

	switch (op->how) {
	case HOW_HELD:
	case HOW_HELD_READ:
		if (fd >= 0)
			return fd;
		break;
	case HOW_PROC:
		if (fd < 0)
			break;
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		fd = open(path, O_RDWR | O_CLOEXEC | flags);
		return fd < 0 ? -errno : fd;
	case HOW_DIRECT:
		flags |= O_DIRECT;
		break;
	}
	fd = openat(a->directory, target_path(op, path), O_RDWR | O_CLOEXEC | flags);
	return fd < 0 ? -errno : fd;
}

void target_close(struct attacker *a, const struct op *op, int fd)
{
	if (fd >= 0 && fd != a->held[op->file] && fd != a->held_read[op->file])
		close(fd);
}

/* The whole file, kept mapped for the epoch. */
void *target_map(struct attacker *a, unsigned file)
{
	if (a->control->targets[file].exclusive)
		return MAP_FAILED;
	if (a->mappings[file] == MAP_FAILED && a->held[file] >= 0)
		a->mappings[file] = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
					 a->held[file], 0);
	return a->mappings[file];
}

void attacker_close(struct attacker *a)
{
	uring_close(&a->ring);
	if (a->aio)
		syscall(SYS_io_destroy, a->aio);
	a->aio = 0;
	for (unsigned i = 0; i < FILES; i++) {
		if (a->mappings[i] != MAP_FAILED)
			munmap(a->mappings[i], FILE_BYTES);
		if (a->held[i] >= 0)
			close(a->held[i]);
		if (a->held_read[i] >= 0)
			close(a->held_read[i]);
	}
	if (a->directory >= 0)
		close(a->directory);
}

void attacker_open(struct attacker *a)
{
	a->directory = open(a->control->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (a->directory < 0 || fchdir(a->directory) < 0)
		_exit(3);
	for (unsigned i = 0; i < FILES; i++) {
		const struct op op = {.file = (uint8_t)i};
		char path[32];

		a->mappings[i] = MAP_FAILED;
		a->held[i] = a->held_read[i] = -1;
		if (a->control->targets[i].exclusive)
			continue;
		a->held[i] = openat(a->directory, target_path(&op, path), O_RDWR | O_CLOEXEC);
		a->held_read[i] = openat(a->directory, path, O_RDONLY | O_CLOEXEC);
	}
	uring_open(&a->ring, 0);
}

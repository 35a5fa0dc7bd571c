/* Between two files on persistent memory: loads, and stores that go around the cache. */
#include "sealsvc/copy.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <emmintrin.h>

/* Both aligned to 16 bytes. Non-temporal stores pollute no cache and need no flush, but a fence. */
static void store_around(char *to, const char *from, size_t length)
{
	size_t i;

	for (i = 0; i + 64 <= length; i += 64) {
		__m128i a = _mm_loadu_si128((const __m128i *)(from + i));
		__m128i b = _mm_loadu_si128((const __m128i *)(from + i + 16));
		__m128i c = _mm_loadu_si128((const __m128i *)(from + i + 32));
		__m128i d = _mm_loadu_si128((const __m128i *)(from + i + 48));

		_mm_stream_si128((__m128i *)(to + i), a);
		_mm_stream_si128((__m128i *)(to + i + 16), b);
		_mm_stream_si128((__m128i *)(to + i + 32), c);
		_mm_stream_si128((__m128i *)(to + i + 48), d);
	}
	memcpy(to + i, from + i, length - i);
	_mm_sfence();
}
#else
static void store_around(char *to, const char *from, size_t length)
{
	memcpy(to, from, length);
}
#endif

static char *mapped(int fd, uint64_t offset, uint64_t length, int write)
{
	int protection = write ? PROT_READ | PROT_WRITE : PROT_READ;
	void *at = mmap(NULL, length, protection, MAP_SHARED, fd, (off_t)offset);

	return at == MAP_FAILED ? NULL : at;
}

/* MADV_POPULATE_* tells of bad media by an errno (EHWPOISON), where a load would be a SIGBUS. */
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Offsets and length are whole pages, inside both files. */
struct seal_copied seal_copy_dax(const struct seal_copy *copy)
{
	char *from = mapped(copy->source, copy->source_offset, copy->length, 0), *to;
	struct seal_copied done = {0, 0};

	if (!from)
		return (struct seal_copied){0, errno};
	to = mapped(copy->destination, copy->destination_offset, copy->length, 1);
	if (!to) {
		done.error = errno;
	} else {
		if (madvise(from, copy->length, MADV_POPULATE_READ) < 0 ||
		    madvise(to, copy->length, MADV_POPULATE_WRITE) < 0) {
			done.error = errno;
		} else {
			store_around(to, from, copy->length);
			done.bytes = copy->length;
		}
		munmap(to, copy->length);
	}
	munmap(from, copy->length);
	return done;
}

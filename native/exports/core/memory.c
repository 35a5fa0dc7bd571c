#include "memory.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define LINE 64

static __thread sigjmp_buf *landing;
static struct sigaction before;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int failure;

static void on_bus(int number, siginfo_t *info, void *context)
{
	if (landing)
		siglongjmp(*landing, 1);
	if (before.sa_flags & SA_SIGINFO) {
		before.sa_sigaction(number, info, context);
		return;
	}
	if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
		before.sa_handler(number);
		return;
	}
	/* The instruction is run again, and ends the process as it would have without us. */
	signal(SIGBUS, SIG_DFL);
}

static void (*write_back)(const char *line);

#if defined(__x86_64__)
__attribute__((target("clwb"))) static void by_clwb(const char *line)
{
	_mm_clwb((void *)line);
}

__attribute__((target("clflushopt"))) static void by_clflushopt(const char *line)
{
	_mm_clflushopt((void *)line);
}

static void by_clflush(const char *line)
{
	_mm_clflush(line);
}

/* Leaf 7 of cpuid: EBX bit 24 is CLWB, bit 23 CLFLUSHOPT (Intel SDM, volume 2A). */
static void choose(void)
{
	unsigned int a, b = 0, c, d;

	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
		b = 0;
	write_back = b & 1u << 24 ? by_clwb : b & 1u << 23 ? by_clflushopt : by_clflush;
}
#else
static void choose(void)
{
}
#endif

static void install(void)
{
	/* SA_NODEFER: the handler is left by siglongjmp, which restores no mask here. */
	struct sigaction action = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER};

	choose();
	if (sigaction(SIGBUS, &action, &before))
		failure = -errno;
}

int memory_init(void)
{
	pthread_once(&once, install);
	return failure;
}

/* The body runs with a landing place for SIGBUS. */
#define GUARDED(body)                                                                              \
	do {                                                                                       \
		sigjmp_buf here;                                                                   \
		if (sigsetjmp(here, 0)) {                                                          \
			landing = NULL;                                                            \
			return -EIO;                                                               \
		}                                                                                  \
		landing = &here;                                                                   \
		__asm__ volatile("" ::: "memory");                                                 \
		body;                                                                              \
		__asm__ volatile("" ::: "memory");                                                 \
		landing = NULL;                                                                    \
		return 0;                                                                          \
	} while (0)

int memory_load(void *to, const void *mapped, size_t length)
{
	GUARDED(memcpy(to, mapped, length));
}

int memory_store(void *mapped, const void *from, size_t length)
{
	GUARDED(memcpy(mapped, from, length));
}

int memory_clear(void *mapped, size_t length)
{
	GUARDED(memset(mapped, 0, length));
}

/* Apart, so that nothing of it lives in the registers of who is landed in. */
__attribute__((noinline)) static size_t differs_at(const unsigned char *a, const unsigned char *b,
						   size_t length)
{
	size_t at = 0;

	if (!memcmp(a, b, length))
		return length;
	while (a[at] == b[at])
		at++;
	return at;
}

int memory_compare(const void *mapped, const void *expected, size_t length, size_t *at)
{
	GUARDED(*at = differs_at(mapped, expected, length));
}

#if defined(__x86_64__)
static void write_back_range(const char *from, size_t length)
{
	const char *line = (const char *)((uintptr_t)from & ~(uintptr_t)(LINE - 1));

	for (; line < from + length; line += LINE)
		write_back(line);
}

/* How many bytes to the next line, at most `length`. */
static size_t to_line(const void *at, size_t length)
{
	size_t gap = -(uintptr_t)at & (LINE - 1);

	return gap < length ? gap : length;
}

static void stream(char *to, const char *from, size_t length)
{
	size_t head = to_line(to, length), lines;

	memcpy(to, from, head);
	write_back_range(to, head);
	to += head, from += head, length -= head;
	for (lines = length / LINE; lines; lines--, to += LINE, from += LINE) {
		for (int part = 0; part < LINE; part += 16)
			_mm_stream_si128((__m128i *)(to + part),
					 _mm_loadu_si128((const __m128i *)(from + part)));
	}
	memcpy(to, from, length % LINE);
	write_back_range(to, length % LINE);
	_mm_sfence();
}

static void stream_zeroes(char *to, size_t length)
{
	size_t head = to_line(to, length), lines;
	const __m128i zero = _mm_setzero_si128();

	memset(to, 0, head);
	write_back_range(to, head);
	to += head, length -= head;
	for (lines = length / LINE; lines; lines--, to += LINE) {
		for (int part = 0; part < LINE; part += 16)
			_mm_stream_si128((__m128i *)(to + part), zero);
	}
	memset(to, 0, length % LINE);
	write_back_range(to, length % LINE);
	_mm_sfence();
}

int memory_store_persistent(void *mapped, const void *from, size_t length)
{
	GUARDED(stream(mapped, from, length));
}

int memory_clear_persistent(void *mapped, size_t length)
{
	GUARDED(stream_zeroes(mapped, length));
}
#else
/* Elsewhere the flush that the caller makes for EXPORT_FUA has the kernel write caches back. */
int memory_store_persistent(void *mapped, const void *from, size_t length)
{
	return memory_store(mapped, from, length);
}

int memory_clear_persistent(void *mapped, size_t length)
{
	return memory_clear(mapped, length);
}
#endif

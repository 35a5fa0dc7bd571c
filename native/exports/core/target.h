/* The target core: a sealed file served as a block device, for any front that has requests to serve
 * (the nbdkit plugin, ublk, TCMU).
 *
 *	struct export_target *target;
 *	struct export_options options = {.size = sizeof(options), .name = "disk", .path = path};
 *	char why[EXPORT_ERROR_ROOM];
 *
 *	if (export_open(&target, &options, why, sizeof(why)) || export_start(target))
 *		...
 *	export_write(target, buffer, length, offset, EXPORT_FUA);
 *
 * A target is a holder: a client of libseal with one seal over the whole device. When the seal is
 * recalled its own thread closes the gate (requests in flight end, new ones wait), unmaps the file,
 * returns the seal, waits until the conflict is over, seals again on the map that there is then, and
 * opens the gate. No request fails for it. Nor does one that the keeper of the seals refuses (it fails closed
 * where it cannot see what an operation does): that is tried again, for as long as a request waits.
 *
 * Every request checks the seal by one load (seal_valid) after it has passed the gate. Requests may
 * come from any number of threads. They return 0 or -errno: -EIO (media, or the pause was longer than
 * `patience`), -EINVAL (beyond the end), -EROFS, -EOPNOTSUPP (discard by policy, a zero that would not
 * be fast), -ESHUTDOWN (the target is being closed), -EAGAIN (EXPORT_NOWAIT and the gate is closed).
 *
 * Lengths and offsets are bytes, of any alignment; those of export_block() are the fast ones.
 */
#ifndef EXPORT_TARGET_H
#define EXPORT_TARGET_H

#include <stddef.h>
#include <stdint.h>

#include "stats.h"

#define EXPORT_ERROR_ROOM 512

struct export_target;

enum export_io {
	EXPORT_IO_AUTO,	  /* MAPPED where the file has DAX, else DIRECT */
	EXPORT_IO_MAPPED, /* loads and stores in a shared mapping: DAX, or the page cache */
	EXPORT_IO_DIRECT, /* pread(2) and pwrite(2) with O_DIRECT */
};

enum export_discard {
	EXPORT_DISCARD_REFUSE, /* -EOPNOTSUPP */
	EXPORT_DISCARD_RECALL, /* a pause: return the seal, punch the range, allocate it anew, seal again */
};

enum export_flag {
	EXPORT_FUA = 1,	   /* durable when the call returns */
	EXPORT_FAST = 2,   /* zeroes: fail with -EOPNOTSUPP where that is no faster than writing */
	EXPORT_NOWAIT = 4, /* -EAGAIN instead of waiting at a closed gate */
};

/* Zero means the default. Strings are copied. */
struct export_options {
	size_t size;	    /* sizeof(struct export_options) */
	const char *name;   /* of the export: the tag of its seal */
	const char *path;   /* of the file */
	const char *socket; /* of the service; default as of libseal */
	const char *kind;   /* "exclusive" */
	const char *fence;  /* "kill": what ends this process when a recall's deadline is missed */
	/* JSON list, ["allocate","convert"]: what the service does to the file before each seal. */
	const char *prepare;
	const char *stats; /* file for struct export_stats; NULL: memory of this process alone */
	double grace;	   /* seconds that a recall leaves; 10 */
	/* Seconds after which requests that wait at the gate fail with -EIO; 0: they wait for ever.
	 * It has to be shorter than the initiator's own time-out to be of use. */
	double patience;
	int read_only;
	enum export_io io;
	enum export_discard discard;
	/* May be NULL. From the target's thread: what happened, for a log; level is that of syslog(3). */
	void (*log)(void *context, int level, const char *text);
	/* May be NULL. From the thread that closes or opens the gate, after it has done so. A front
	 * that submits with EXPORT_NOWAIT submits what got -EAGAIN again when `paused` is 0. */
	void (*gate)(void *context, int paused);
	void *context;
};

/* Opens the file, seals it and makes it ready. Starts no thread: recalls are only obeyed from
 * export_start() on. 0 or -errno, with a text in `why`. */
int export_open(struct export_target **target, const struct export_options *options, char *why,
		size_t room);
/* Starts the thread that obeys recalls, and locks this process's memory (mlockall). A front that
 * forks or daemonises opens and starts after that. 0 or -errno. */
int export_start(struct export_target *target);
/* Requests that wait at the gate, and those that come to a closed one, fail with -ESHUTDOWN. */
void export_shutdown(struct export_target *target);
/* Lets requests that wait at the gate fail with -ESHUTDOWN, waits for those under way, returns the
 * seal. */
void export_close(struct export_target *target);

uint64_t export_size(const struct export_target *target);
/* Bytes: requests of multiples of it need no read before a write. */
uint32_t export_block(const struct export_target *target);
/* 1: loads and stores in persistent memory itself, without a page cache. */
int export_is_dax(const struct export_target *target);
int export_is_read_only(const struct export_target *target);
/* 1: zeroes of EXPORT_FAST are done. */
int export_zeroes_fast(const struct export_target *target);
int export_discards(const struct export_target *target);
struct export_stats *export_stats(struct export_target *target);

int export_read(struct export_target *target, void *buffer, size_t length, uint64_t offset,
		unsigned int flags);
int export_write(struct export_target *target, const void *buffer, size_t length, uint64_t offset,
		 unsigned int flags);
int export_zero(struct export_target *target, size_t length, uint64_t offset, unsigned int flags);
int export_discard(struct export_target *target, size_t length, uint64_t offset,
		   unsigned int flags);
/* Everything that was written before is durable when it returns 0: fdatasync(2), which on persistent
 * memory is a deep flush of the region too (nvdimm_flush). */
int export_flush(struct export_target *target, unsigned int flags);
#define EXPORT_LONGEST_COMPARE (512u << 10)
/* Atomic against every other request of this target, of at most EXPORT_LONGEST_COMPARE bytes. -EILSEQ: it differs, first at byte `*at` of
 * `expected`, and nothing was written. */
int export_compare_and_write(struct export_target *target, const void *expected,
			     const void *replacement, size_t length, uint64_t offset,
			     unsigned int flags, size_t *at);

/* For a front that does the I/O itself (io_uring, copy offload) on export_fd(): enter before it
 * submits, leave when it has ended; a pause waits for every enter to be left. enter returns 0,
 * -EAGAIN (EXPORT_NOWAIT), -EIO or -ESHUTDOWN. Between them, and only there, the file may be used. */
int export_enter(struct export_target *target, unsigned int flags);
void export_leave(struct export_target *target);
int export_fd(const struct export_target *target);
/* Whether the seal stands as this target knows it: one load. */
int export_valid(const struct export_target *target);
/* A pause by hand: closes the gate and returns when nothing is under way; the seal is kept. Every
 * export_pause needs its export_resume. */
void export_pause(struct export_target *target);
void export_resume(struct export_target *target);

#endif

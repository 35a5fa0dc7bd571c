/* libseal: revocable promises on extent maps, for programs that hand out storage addresses.
 *
 *	struct seal_client *client;
 *	struct seal seal;
 *	int file;
 *
 *	seal_open(&client, NULL);
 *	file = seal_register(client, fd, NULL);
 *	seal_grant(client, file, offset, length, SEAL_RW, &seal);
 *	...
 *	if (seal_valid(&seal))
 *		use_the_addresses();
 *	...
 *	seal_return(client, &seal);
 *
 * The library lives in its caller: it forks nothing, starts no thread, installs no signal handler and,
 * once a client is open, allocates nothing. What happens on its own account is waited for on one
 * descriptor, seal_fd(), and told by callbacks from seal_dispatch(), in the caller's thread.
 *
 * Threads. A client is used by one thread at a time. seal_valid(), seal_state_of() and seal_slot_at()
 * may be called by any thread at any time. Different clients have nothing in common.
 *
 * fork(2). In a child every call on a client of its parent fails with -EOWNERDEAD, but for seal_close(),
 * which releases the child's copy. The child does not hold what its parent holds; seal_valid() goes on
 * telling whether the parent does.
 *
 * Errors are negative errno values. Times are in nanoseconds, sizes and offsets in bytes.
 */
#ifndef SEAL_H
#define SEAL_H

#include <stddef.h>
#include <stdint.h>

#include "seal_table.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SEAL_VERSION 1

struct seal_client;
struct seal_map_extent;

/* A seal of ours: the caller's memory. `word` is that of the slot as we know it. */
struct seal {
	const struct seal_slot *slot;
	uint64_t word;
	uint64_t offset, length;
	uint32_t number; /* of the slot */
	uint32_t file;
};

/* 1 while the seal stands exactly as we know it. 0: it was recalled, lost or is over; look with
 * seal_state_of(), or hear of it in seal_dispatch(). One load, no call; for any thread. */
static inline int seal_valid(const struct seal *seal)
{
	return __atomic_load_n(&seal->slot->word, __ATOMIC_ACQUIRE) == seal->word;
}

/* enum seal_state; SEAL_RETURNED also when the slot has another seal by now. For any thread. */
static inline uint32_t seal_state_of(const struct seal *seal)
{
	uint64_t word = __atomic_load_n(&seal->slot->word, __ATOMIC_ACQUIRE);

	if (seal_word_generation(word) != seal_word_generation(seal->word))
		return SEAL_RETURNED;
	return seal_word_state(word);
}

/* What the service tells. `kind` is enum seal_event_kind of seal_ring.h: what to do is said there.
 * `cookie` is that of the grant; `offset` and `length` are what is wanted back. */
struct seal_news {
	uint32_t kind;
	uint32_t number; /* of the slot; UINT32_MAX: about a registered file, or about all */
	uint32_t file;
	uint32_t state;
	uint64_t cookie;
	uint64_t offset, length;
	uint64_t deadline; /* of CLOCK_BOOTTIME */
	uint64_t word;
};

/* The end of a command that was submitted. */
struct seal_completion {
	uint64_t id;
	int32_t status; /* 0 or -errno */
	uint32_t number;
	uint64_t word;
	uint32_t count;			      /* of extents */
	const struct seal_channel_answer *pi; /* of a PI command, during the callback; else NULL */
};

/* Zero means the default. */
struct seal_options {
	size_t size;	    /* sizeof(struct seal_options) */
	const char *socket; /* default: SEALSVC_SOCKET, else /run/sealsvc/control.sock */
	uint32_t slots;	    /* seals at a time; 1024 */
	uint32_t commands;  /* bytes, a multiple of 16; 16384 */
	uint32_t events;    /* a number of them; 256 */
	uint32_t data;	    /* bytes, none or at least 4096; 65536 */
	uint32_t spin;	    /* looks before sleeping, at most: adapted; 0 */
	uint64_t timeout;   /* ns that a blocking call waits; 30 s */
	/* Called by seal_dispatch() alone. They may use the client. */
	void (*news)(struct seal_client *client, const struct seal_news *news, void *context);
	void (*done)(struct seal_client *client, const struct seal_completion *done, void *context);
	void *context;
	/* Attach again to the ring that seal_identity() told, instead of making one. */
	uint32_t ring;
	char secret[17];
};

/* Who else may open the file while something of it is sealed. */
enum seal_kind {
	SEAL_KIND_SHARED = 1,	 /* anybody */
	SEAL_KIND_EXCLUSIVE = 2, /* nobody but the holder */
};

/* What an operation meets that would change a sealed map. */
enum seal_conflict {
	SEAL_CONFLICT_WAIT = 1,	  /* it waits while the seal is recalled */
	SEAL_CONFLICT_REFUSE = 2, /* it gets ETXTBSY */
};

/* How far the service may go against a holder that misses the deadline of a recall. */
enum seal_fence {
	SEAL_FENCE_NOBODY = 1, /* the seal stays, and conflicts are refused */
	SEAL_FENCE_SIGNAL = 2, /* SIGTERM */
	SEAL_FENCE_KILL = 3,   /* SIGTERM, then SIGKILL */
};

/* What the service may do to the file first; a set. */
enum seal_preparation {
	SEAL_PREPARE_ALLOCATE = 1, /* fill holes */
	SEAL_PREPARE_CONVERT = 2,  /* write unwritten extents */
	SEAL_PREPARE_UNSHARE = 4,  /* give it blocks of its own */
	SEAL_PREPARE_ALIGN = 8,	   /* to pages of 2 MiB */
};

/* Zero means the default. */
struct seal_file_options {
	size_t size;		 /* sizeof(struct seal_file_options) */
	uint64_t offset, length; /* length 0: to the end of the file */
	uint64_t grace;		 /* ns that a recall leaves; 10 s */
	uint32_t iomode;	 /* enum seal_iomode; SEAL_RW */
	uint32_t kind;		 /* enum seal_kind; shared */
	uint32_t conflict;	 /* enum seal_conflict; wait */
	uint32_t fence;		 /* enum seal_fence; nobody */
	uint32_t prepare;	 /* enum seal_preparation, as a set; nothing */
	const char *tag;	 /* what listings show of it; "" */
};

/* Connects, makes a ring, and maps it. NULL: all defaults. 0 or -errno. */
int seal_open(struct seal_client **client, const struct seal_options *options);
/* Releases everything but what is sealed: registrations end with the process, or by seal_unregister. */
void seal_close(struct seal_client *client);

/* What another process of the same user needs to attach to this ring. */
int seal_identity(const struct seal_client *client, uint32_t *ring, char secret[17]);
/* After the service was started again: connect anew. Everything sealed went on meanwhile. */
int seal_reconnect(struct seal_client *client);
/* The text of the last failure of seal_register, seal_unregister or seal_reconnect. NULL: of the last
 * seal_open of this thread that failed. */
const char *seal_failure(const struct seal_client *client);

/* Register the file of `fd`, or a range of it: its index, or -errno (-EINVAL: an option that there is not). `fd` stays the caller's; through
 * this very description its mappings are found. */
int seal_register(struct seal_client *client, int fd, const struct seal_file_options *options);
/* Every seal in it is returned with it; -EBUSY while something of the range is mapped. */
int seal_unregister(struct seal_client *client, int file);

/* Commands that block. 0 or -errno: ESTALE (the seal was changed meanwhile: look at it), ENOENT (it is
 * over), EAGAIN (what was registered is being recalled, or read anew: later), EINVAL, ENOSPC (no slot is
 * left), EBUSY (something is mapped), ETIMEDOUT, EPIPE (the ring is broken, or gone). */
int seal_grant(struct seal_client *client, int file, uint64_t offset, uint64_t length,
	       enum seal_iomode iomode, struct seal *seal);
int seal_return(struct seal_client *client, struct seal *seal);
/* A part at one end of the seal. */
int seal_return_part(struct seal_client *client, struct seal *seal, uint64_t offset,
		     uint64_t length);
/* It is mapped at `address` (NULL: wherever): have that proven. */
int seal_mapped(struct seal_client *client, struct seal *seal, const void *address);
int seal_renew(struct seal_client *client, struct seal *seal, uint64_t ttl);
int seal_downgrade(struct seal_client *client, struct seal *seal);
/* The recall is being seen to: its deadline moves. */
int seal_progress(struct seal_client *client, struct seal *seal);
/* Take over what the service changed, such as a recall: seal_valid() is 1 again while it is live. */
int seal_refresh(struct seal_client *client, struct seal *seal);
/* The extents of a registered range, into the caller's memory: how many, or -errno (EAGAIN: the map is
 * not known just now). Longer answers take several calls. */
int seal_extents(struct seal_client *client, int file, uint64_t offset, uint64_t length,
		 struct seal_map_extent *out, uint32_t room);

/* Copies from one registered range to another (SEAL_RW), which may be of one file. Neither file's extents are
 * shared, moved or freed, so that seals on them stay as they are. How many bytes from `offset` on are copied and
 * on the device: fewer than `length` where the source ends, or after 20 s: go on from there; 0 at the end of the
 * source. Or -errno: EACCES (`to` is registered for reading), EAGAIN (a registration is being recalled), EDQUOT
 * (too many copies are under way), EINVAL (outside what is registered; overlapping), EIO, ENOSPC, ENOSYS (an older
 * keeper), ETIMEDOUT (some of it may have been copied). Nothing is promised to who writes to either meanwhile. */
int64_t seal_copy_bytes(struct seal_client *client, int file, uint64_t offset, int to,
			uint64_t to_offset, uint64_t length);

/* Commands that do not: `command` as in seal_ring.h (of a PI command the head of its struct
 * seal_pi_command), of which size, flags, id and done are filled in. Its id, or -EAGAIN: the ring is full
 * (seal_dispatch() makes room). Nothing is sent before seal_flush(). */
struct seal_command;
int64_t seal_submit(struct seal_client *client, const struct seal_command *command);
int seal_flush(struct seal_client *client);
/* The seal that a grant ended with. */
void seal_take(const struct seal_client *client, const struct seal_completion *done,
	       struct seal *seal);

/* To be polled for reading: something is there for seal_dispatch(). */
int seal_fd(const struct seal_client *client);
/* Runs callbacks for all that is there: how many, or -errno (-EPIPE: the ring is gone). */
int seal_dispatch(struct seal_client *client);
/* 1 after events were dropped because nobody dispatched: look at every seal. Asking resets it. */
int seal_missed(struct seal_client *client);
/* 1 while the service answers; without it everything but registering goes on. */
int seal_is_connected(const struct seal_client *client);
/* A slot of our table; NULL: there is none. For any thread. */
const struct seal_slot *seal_slot_at(const struct seal_client *client, uint32_t number);

#ifdef __cplusplus
}
#endif

#endif

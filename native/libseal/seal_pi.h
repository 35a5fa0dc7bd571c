/* Protection information (PI) of the application's own, to the blocks of a sealed file.
 *
 *	struct seal_file_options options = {sizeof(options), .kind = SEAL_KIND_EXCLUSIVE};
 *	int file = seal_register(client, fd, &options);
 *	struct seal_pi *pi;
 *	struct seal_channel_error error;
 *	struct seal_pi_io io = {
 *		.size = sizeof(io), .offset = 0, .pi = tuples, .pi_length = sizeof(tuples),
 *		.provided = SEAL_FIELD_CHECKSUM, .verify = SEAL_FIELD_CHECKSUM | SEAL_FIELD_REFTAG,
 *		.checkers = SEAL_BY_DEVICE,
 *	};
 *
 *	seal_pi_open(client, file, 0, NULL, &pi);
 *	if (seal_pi_writev(pi, iov, count, &io, &error) == -EILSEQ)
 *		...error.offset, error.field, error.expected, error.found...
 *
 * The service does the I/O, on the block device under the file (docs/integrity-device.md says why). Data
 * in the caller's buffers is copied once, by the calling thread; data in seal_pi_memory() is not copied.
 * The library forks nothing, starts no thread and allocates nothing after seal_pi_open. One thread at a
 * time may use a struct seal_pi. Errors are negative errno values. Sizes and offsets are in bytes. */
#ifndef SEAL_PI_H
#define SEAL_PI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "seal_channel.h"

#ifdef __cplusplus
extern "C" {
#endif

struct seal_client;
struct seal_pi;

/* Where the PI of a request is: in io->pi, or in the first or the last of its iovecs. */
enum seal_pi_place { SEAL_PI_APART, SEAL_PI_FIRST, SEAL_PI_LAST };

/* Zero means the default. */
struct seal_pi_io {
	size_t size;	 /* sizeof(struct seal_pi_io) */
	uint64_t offset; /* of the file: whole intervals, and whole logical blocks of the device */
	void *pi;	 /* one tuple for each interval of data; NULL: none is given or wanted */
	size_t pi_length;
	uint32_t place; /* enum seal_pi_place */
	uint16_t flags; /* SEAL_CHANNEL_DSYNC */
	uint16_t
		provided; /* enum seal_field, as a set: the others are generated and stored in the PI */
	uint16_t verify;   /* enum seal_field, as a set */
	uint16_t checkers; /* enum seal_checker, as a set: SEAL_BY_SERVICE, SEAL_BY_DEVICE */
	uint16_t tag;	   /* application tag: generated, and expected */
	uint16_t has_reftag;
	uint64_t reftag; /* of the first interval, if has_reftag; else offset / interval */
	uint64_t cookie; /* the caller's name for the request, kept in the service's error record */
};

/* What a channel works with. Sizes in bytes. */
struct seal_pi_facts {
	uint32_t interval, metadata, pi_offset, pi_size, ref_size, block;
};

/* A channel for the exclusive registration `file` of seal_register. `bytes` of shared memory (0: 1 MiB),
 * `profile` as sealctl pi shows it (NULL: whatever the device keeps). 0 or -errno: EOPNOTSUPP (there is no
 * device path here; seal_failure() has the reason), EAGAIN (the seal is being recalled). */
int seal_pi_open(struct seal_client *client, int file, size_t bytes, const char *profile,
		 struct seal_pi **pi);
/* The same, through the ring: requests of this channel are commands (SEAL_CMD_PI_WRITE, SEAL_CMD_PI_READ) which
 * the keeper passes on. seal_pi_writev and seal_pi_readv wait for theirs, up to the client's timeout (ETIMEDOUT:
 * whether it was carried out is not known; close the channel). Several requests at a time: seal_submit() of a
 * struct seal_pi_command with offsets in seal_pi_memory(). EOPNOTSUPP also where the keeper is older than that.
 * Close the channel before the client. */
int seal_pi_open_ring(struct seal_client *client, int file, size_t bytes, const char *profile,
		      struct seal_pi **pi);
/* A channel from the two descriptors that the answer to a pi-channel request carries; both are taken
 * over, whatever happens. */
int seal_pi_attach(int socket, int memory, const struct seal_pi_facts *facts, struct seal_pi **pi);
void seal_pi_close(struct seal_pi *pi);

const struct seal_pi_facts *seal_pi_facts(const struct seal_pi *pi);
/* Memory whose content is not copied when a request's data lies there in one piece, from a multiple of
 * SEAL_CHANNEL_ALIGN on. A request with its data elsewhere overwrites it. */
void *seal_pi_memory(const struct seal_pi *pi, size_t *size);

/* Bytes of data, or -errno: EILSEQ (`error` says which field of which interval; nothing is known to be
 * written), ESTALE (sealed no more, or about to be recalled: the channel is over), EBUSY (the range is
 * mapped, or was read through the page cache meanwhile), EINVAL (not whole blocks, a PI that does not
 * fit), ERANGE (outside of the sealed range), EBADF (a write under a read-only seal), ENOTSUP
 * (SEAL_BY_CLIENT: this library has no checksums), EIO. After an error some of a request longer than
 * the memory may have been carried out. `error` may be NULL. */
ssize_t seal_pi_writev(struct seal_pi *pi, const struct iovec *iov, int count,
		       const struct seal_pi_io *io, struct seal_channel_error *error);
/* The fields found are stored in the PI, also with EILSEQ. */
ssize_t seal_pi_readv(struct seal_pi *pi, const struct iovec *iov, int count,
		      const struct seal_pi_io *io, struct seal_channel_error *error);

#ifdef __cplusplus
}
#endif

#endif

#include "transfer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cache.h"
#include "check.h"
#include "sealsvc/extents.h"

/* Of one SQE: below BIO_MAX_VECS pages whatever the alignment, since of a transfer that needs several bios
 * a later one may fail to be mapped after the first was submitted (block/fops.c __blkdev_direct_IO). */
#define TRANSFER_MAX (512u << 10)
#define SECTOR 512

/* IO_INTEGRITY_CHK_* of include/uapi/linux/fs.h */
enum { CHECK_GUARD = 1, CHECK_REF_TAG = 2, CHECK_APP_TAG = 4 };

static int keep_extents(struct pi_target *target, const struct seal_channel_options *options)
{
	target->extents = calloc(options->extent_count, sizeof(*target->extents));
	if (!target->extents)
		return -ENOMEM;
	for (uint32_t i = 0; i < options->extent_count; i++)
		target->extents[i] = (struct pi_extent){options->extents[i].logical,
							options->extents[i].physical,
							options->extents[i].length};
	target->extent_count = options->extent_count;
	return 0;
}

static int make_tuples(struct pi_target *target)
{
	void *at;

	target->tuples_size =
		SEAL_CHANNEL_LENGTH_MAX / target->layout.interval * target->layout.metadata;
	at = mmap(NULL, target->tuples_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		  -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	target->tuples = at;
	return 0;
}

int pi_target_open(struct pi_target *target, const struct seal_channel_options *options)
{
	int error;

	*target = (struct pi_target){
		.device = options->device,
		.file = options->file,
		.writable = (int)options->writable,
		.offset = options->offset,
		.length = options->length,
		.layout = options->layout,
		.ring.fd = -1,
	};
	error = pi_check_profile(&options->layout, &target->profile);
	if (!error)
		error = keep_extents(target, options);
	if (!error)
		error = make_tuples(target);
	if (!error)
		error = pi_ring_open(&target->ring);
	return error; /* whoever opens releases, also what failed */
}

void pi_target_release(struct pi_target *target)
{
	pi_ring_close(&target->ring);
	if (target->tuples)
		munmap(target->tuples, target->tuples_size);
	free(target->extents);
}

static uint64_t granule_of(const struct pi_target *target)
{
	const struct seal_pi_capability *layout = &target->layout;

	return layout->block > layout->interval ? layout->block : layout->interval;
}

int pi_target_refuses(const struct pi_target *target, const struct seal_channel_request *request)
{
	const uint16_t fields = SEAL_FIELD_CHECKSUM | SEAL_FIELD_TAG | SEAL_FIELD_REFTAG;
	const uint16_t checkers = SEAL_BY_CLIENT | SEAL_BY_SERVICE | SEAL_BY_DEVICE;
	const uint64_t granule = granule_of(target);

	if ((request->op != SEAL_CHANNEL_READ && request->op != SEAL_CHANNEL_WRITE) ||
	    request->flags & ~SEAL_CHANNEL_DSYNC || request->reserved || !request->length ||
	    (request->provided | request->verify) & ~fields || request->checkers & ~checkers ||
	    request->offset % granule || request->length % granule)
		return -EINVAL;
	if (request->op == SEAL_CHANNEL_WRITE && !target->writable)
		return -EBADF;
	if (request->length > SEAL_CHANNEL_LENGTH_MAX)
		return -EMSGSIZE;
	if (request->offset < target->offset || request->length > target->length ||
	    request->offset - target->offset > target->length - request->length)
		return -ERANGE;
	return 0;
}

/* The extent of a byte of the file; NULL: the map has none there. */
static const struct pi_extent *extent_of(const struct pi_target *target, uint64_t offset)
{
	uint32_t low = 0, high = target->extent_count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (target->extents[middle].logical + target->extents[middle].length <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low < target->extent_count && target->extents[low].logical <= offset
		       ? &target->extents[low]
		       : NULL;
}

/* A piece of the request: `at` and `length` bytes, as positions in its data. */
struct piece {
	uint64_t at, length;
};

/* The transfer of the first part of the piece that lies in one piece on the device; 0 or -EIO. */
static int make_transfer(const struct pi_target *target, const struct seal_channel_request *request,
			 unsigned char *data, struct piece piece, struct pi_transfer *out)
{
	const struct seal_pi_capability *layout = &target->layout;
	uint64_t offset = request->offset + piece.at, first = piece.at / layout->interval;
	const struct pi_extent *extent = extent_of(target, offset);
	uint64_t length = piece.length < TRANSFER_MAX ? piece.length : TRANSFER_MAX;

	if (!extent)
		return -EIO;
	if (length > extent->logical + extent->length - offset)
		length = extent->logical + extent->length - offset;
	if (length % layout->interval)
		return -EIO; /* file system blocks are multiples of the interval */
	*out = (struct pi_transfer){
		.data = {data + piece.at, length},
		.pi = target->tuples + first * layout->metadata,
		.pi_length = (uint32_t)(length / layout->interval * layout->metadata),
		.position = extent->physical + (offset - extent->logical),
		.seed = request->reftag + first,
	};
	return 0;
}

static int result_of(const struct pi_transfer *transfers, uint32_t count)
{
	int error = 0;

	for (uint32_t i = 0; i < count; i++) {
		int one = transfers[i].result;

		if (one == (int)transfers[i].data.iov_len)
			continue;
		one = one < 0 ? one : -EIO; /* a short transfer: the device has ended */
		if (!error || one == -EILSEQ)
			error = one;
	}
	return error;
}

static struct pi_command command_of(const struct pi_target *target,
				    const struct seal_channel_request *request)
{
	struct pi_command command = {
		.device = target->device,
		.write = request->op == SEAL_CHANNEL_WRITE,
		.dsync = (request->flags & SEAL_CHANNEL_DSYNC) != 0,
		.app_tag = request->tag,
	};

	if (!(request->checkers & SEAL_BY_DEVICE))
		return command;
	if (request->verify & SEAL_FIELD_CHECKSUM)
		command.checks |= CHECK_GUARD;
	if (request->verify & SEAL_FIELD_TAG)
		command.checks |= CHECK_APP_TAG;
	if (request->verify & SEAL_FIELD_REFTAG && target->layout.ref_size)
		command.checks |= CHECK_REF_TAG;
	return command;
}

/* All of a piece of the request. */
static int run(struct pi_target *target, const struct seal_channel_request *request,
	       const struct pi_command *command, unsigned char *data, struct piece piece)
{
	struct pi_transfer transfers[PI_RING_ENTRIES];
	int error = 0;

	while (!error && piece.length) {
		uint32_t count = 0;

		for (; piece.length && count < PI_RING_ENTRIES; count++) {
			error = make_transfer(target, request, data, piece, &transfers[count]);
			if (error)
				return error;
			piece.at += transfers[count].data.iov_len;
			piece.length -= transfers[count].data.iov_len;
		}
		error = pi_ring_run(&target->ring, command, transfers, count);
		if (error) {
			target->broken = 1;
			return error;
		}
		error = result_of(transfers, count);
	}
	return error;
}

static struct pi_expected expected_of(const struct seal_channel_request *request, uint16_t fields)
{
	return (struct pi_expected){
		.fields = fields, .tag = request->tag, .reftag = request->reftag};
}

static uint32_t intervals_of(const struct pi_target *target, uint64_t length)
{
	return (uint32_t)(length / target->layout.interval);
}

/* Where interval `error->index` of the request lies. */
static void locate(const struct pi_target *target, const struct seal_channel_request *request,
		   uint32_t checker, struct seal_channel_error *error)
{
	const struct pi_extent *extent;

	error->checker = checker;
	error->located = 1;
	error->offset = request->offset + (uint64_t)error->index * target->layout.interval;
	extent = extent_of(target, error->offset);
	if (extent)
		error->sector = (extent->physical + error->offset - extent->logical) / SECTOR;
}

/* 1 when one of the fields is not as it should be: `error` says which. Of a type 3 device the reference tag
 * is never compared. */
static int differs(const struct pi_target *target, const struct seal_channel_request *request,
		   const unsigned char *data, uint16_t fields, uint32_t checker,
		   struct seal_channel_error *error)
{
	const uint16_t known = target->layout.ref_size ? fields : fields & ~SEAL_FIELD_REFTAG;
	const struct pi_expected expected = expected_of(request, known);
	int result = pi_check_compare(&target->layout, &target->profile, data, target->tuples,
				      intervals_of(target, request->length), &expected, error);

	if (result == 1)
		locate(target, request, checker, error);
	return result;
}

/* What the device has found: among what it was asked to check, or what SCSI checks always. */
static void explain(const struct pi_target *target, const struct seal_channel_request *request,
		    const unsigned char *data, struct seal_channel_error *error)
{
	const uint16_t always = SEAL_FIELD_CHECKSUM | SEAL_FIELD_REFTAG;

	error->checker = SEAL_BY_DEVICE;
	if (differs(target, request, data, request->verify, SEAL_BY_DEVICE, error) == 0)
		differs(target, request, data, always, SEAL_BY_DEVICE, error);
}

/* 0, or -EILSEQ when the service was to check and something differs. */
static int check(const struct pi_target *target, const struct seal_channel_request *request,
		 const unsigned char *data, struct seal_channel_error *error)
{
	int result;

	if (!(request->checkers & SEAL_BY_SERVICE))
		return 0;
	result = differs(target, request, data, request->verify, SEAL_BY_SERVICE, error);
	return result > 0 ? -EILSEQ : result;
}

/* The first block of a failed read that fails by itself, found by halves. */
static void find_block(struct pi_target *target, const struct seal_channel_request *request,
		       const struct pi_command *command, unsigned char *data,
		       struct seal_channel_error *error)
{
	struct piece piece = {0, request->length};
	const uint64_t block = granule_of(target);

	while (piece.length > block) {
		uint64_t half = piece.length / block / 2 * block;

		if (run(target, request, command, data, (struct piece){piece.at, half}) !=
		    -EILSEQ) {
			piece.at += half;
			half = piece.length - half;
		}
		piece.length = half;
	}
	if (run(target, request, command, data, piece) != -EILSEQ)
		return;
	error->index = intervals_of(target, piece.at);
	locate(target, request, SEAL_BY_DEVICE, error);
}

/* The kernel says EILSEQ and no more: of a read all blocks are read again, with no check asked for. Where
 * the device checks nevertheless (SCSI: sd_setup_protect_cmnd always asks for it), at least the block is
 * found. */
static void explain_read(struct pi_target *target, const struct seal_channel_request *request,
			 unsigned char *data, struct seal_channel_error *error)
{
	struct pi_command unchecked = command_of(target, request);

	unchecked.checks = 0;
	error->checker = SEAL_BY_DEVICE;
	if (run(target, request, &unchecked, data, (struct piece){0, request->length}) == 0)
		explain(target, request, data, error); /* it may have been read well this time */
	else
		find_block(target, request, &unchecked, data, error);
}

static int read_range(struct pi_target *target, const struct seal_channel_request *request,
		      const struct pi_buffers *buffers, struct seal_channel_error *error)
{
	const struct pi_command command = command_of(target, request);
	uint32_t count = intervals_of(target, request->length);
	int result = pi_cache_clean(target->file, request->offset, request->length);

	if (result)
		return result;
	result = run(target, request, &command, buffers->data, (struct piece){0, request->length});
	if (result == -EILSEQ)
		explain_read(target, request, buffers->data, error);
	else if (!result)
		result = check(target, request, buffers->data, error);
	memcpy(buffers->pi, target->tuples, (size_t)count * target->layout.metadata);
	return result;
}

static int write_range(struct pi_target *target, const struct seal_channel_request *request,
		       const struct pi_buffers *buffers, struct seal_channel_error *error)
{
	const struct pi_command command = command_of(target, request);
	const uint16_t all = SEAL_FIELD_CHECKSUM | SEAL_FIELD_TAG | SEAL_FIELD_REFTAG;
	const struct pi_expected made = expected_of(request, all & ~request->provided);
	uint32_t count = intervals_of(target, request->length);
	size_t size = (size_t)count * target->layout.metadata;
	int result;

	memcpy(target->tuples, buffers->pi, size);
	result = pi_check_generate(&target->layout, &target->profile, buffers->data, target->tuples,
				   count, &made);
	if (result)
		return result;
	memcpy(buffers->pi, target->tuples, size);
	result = check(target, request, buffers->data, error);
	if (result)
		return result;
	result = pi_cache_drop(target->file, request->offset, request->length);
	if (result)
		return result;
	result = run(target, request, &command, buffers->data, (struct piece){0, request->length});
	if (result == -EILSEQ) {
		/* The kernel has mapped the reference tags to sectors in its copy, or in ours. */
		memcpy(target->tuples, buffers->pi, size);
		explain(target, request, buffers->data, error);
	}
	/* Pages that the holder read into the cache meanwhile hold what was there before. */
	if (pi_cache_drop(target->file, request->offset, request->length) < 0 && !result)
		result = -EBUSY;
	return result;
}

int pi_target_run(struct pi_target *target, const struct seal_channel_request *request,
		  const struct pi_buffers *buffers, struct seal_channel_error *error)
{
	if (request->op == SEAL_CHANNEL_WRITE)
		return write_range(target, request, buffers, error);
	return read_range(target, request, buffers, error);
}

/* EXTENDED COPY (LID1), SPC-4 6.4: blocks from one disk of this process to another, or within one. Where both
 * are of one plugin that can copy by itself it does; else blocks are read and written, in place.
 *
 * A process that dies in the middle is followed by one that carries the command out again, from its beginning.
 * So that this gives the same, a segment may not write what it, or one before it, reads. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "scsi.h"

#define HEADER 16
#define CSCD 32
#define SEGMENT 28
#define LIST_ROOM (HEADER + SCSI_COPY_CSCDS * CSCD + SCSI_COPY_SEGMENTS * SEGMENT)
#define PART (1u << 20)

#define IDENTIFICATION 0xe4 /* the type of a CSCD descriptor: by a designator of VPD page 0x83 */
#define BLOCK_TO_BLOCK 0x02 /* the type of a segment descriptor */
#define NO_LIST_ID 3	    /* LIST ID USAGE */

struct segment {
	struct scsi_lun *from, *to;
	uint64_t from_at, to_at, length; /* bytes */
};

struct copy {
	unsigned cscds, segments;
	struct scsi_lun *disks[SCSI_COPY_CSCDS]; /* NULL: not one of ours */
	struct segment segment[SCSI_COPY_SEGMENTS];
	uint8_t list[LIST_ROOM];
};

static pthread_mutex_t lock =
	PTHREAD_MUTEX_INITIALIZER; /* of all below, and of each disk's copies */
static pthread_cond_t unused = PTHREAD_COND_INITIALIZER;
static struct scsi_lun *disks;

void scsi_join(struct scsi_lun *lun)
{
	pthread_mutex_lock(&lock);
	lun->next = disks;
	disks = lun;
	pthread_mutex_unlock(&lock);
}

void scsi_leave(struct scsi_lun *lun)
{
	struct scsi_lun **at = &disks;

	pthread_mutex_lock(&lock);
	while (*at && *at != lun)
		at = &(*at)->next;
	if (*at)
		*at = lun->next;
	while (lun->users)
		pthread_cond_wait(&unused, &lock);
	pthread_mutex_unlock(&lock);
}

static int is_named(const struct scsi_lun *lun, const uint8_t *designator)
{
	uint8_t own[SCSI_NAA_BYTES];

	scsi_naa(lun, own);
	return memcmp(own, designator, sizeof(own)) == 0;
}

/* Kept from being closed until put(). */
static struct scsi_lun *take(struct scsi_lun *self, const uint8_t *designator)
{
	struct scsi_lun *found = is_named(self, designator) ? self : NULL;

	pthread_mutex_lock(&lock);
	for (struct scsi_lun *at = disks; at && !found; at = at->next)
		if (is_named(at, designator))
			found = at;
	if (found)
		found->users++;
	pthread_mutex_unlock(&lock);
	return found;
}

static void put(struct copy *copy)
{
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < copy->cscds; i++)
		if (copy->disks[i])
			copy->disks[i]->users--;
	pthread_cond_broadcast(&unused);
	pthread_mutex_unlock(&lock);
}

static int refuse(struct scsi_task *task, enum scsi_sense_code code)
{
	scsi_check(task, SCSI_ILLEGAL_REQUEST, code);
	return -1;
}

/* The third and fourth byte of the command-specific information are the segment's number. */
static int abort_copy(struct scsi_task *task, unsigned segment, unsigned code)
{
	scsi_check(task, SCSI_COPY_ABORTED, (enum scsi_sense_code)code);
	scsi_put(task->sense + 10, 2, segment);
	return -1;
}

static int read_list(struct scsi_task *task, uint64_t length, struct copy *copy)
{
	uint64_t cscds, segments;

	if (length < HEADER || task->bytes < length)
		return refuse(task, SCSI_PARAMETER_LIST_LENGTH_ERROR);
	scsi_copy_in(task, 0, copy->list, HEADER);
	cscds = scsi_get(copy->list + 2, 2);
	segments = scsi_get(copy->list + 8, 4);
	if (scsi_get(copy->list + 12, 4))
		return refuse(task, SCSI_INLINE_DATA_LENGTH_EXCEEDED);
	if (cscds > SCSI_COPY_CSCDS * CSCD)
		return refuse(task, SCSI_TOO_MANY_CSCD_DESCRIPTORS);
	if (segments > SCSI_COPY_SEGMENTS * SEGMENT)
		return refuse(task, SCSI_TOO_MANY_SEGMENT_DESCRIPTORS);
	if (HEADER + cscds + segments > length)
		return refuse(task, SCSI_PARAMETER_LIST_LENGTH_ERROR);
	if (cscds % CSCD)
		return refuse(task, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	scsi_copy_in(task, HEADER, copy->list + HEADER, cscds + segments);
	copy->cscds = (unsigned)cscds / CSCD;
	copy->segments = (unsigned)(segments + SEGMENT - 1) / SEGMENT;
	return 0;
}

static int find_disks(struct scsi_task *task, struct copy *copy)
{
	for (unsigned i = 0; i < copy->cscds; i++) {
		const uint8_t *cscd = copy->list + HEADER + i * CSCD;

		if (cscd[0] != IDENTIFICATION)
			return refuse(task, SCSI_UNSUPPORTED_CSCD_DESCRIPTOR);
		/* A disk, by a logical unit's NAA designator in binary. */
		if (cscd[1] || (cscd[4] & 0x0f) != 1 || (cscd[5] & 0x3f) != 3 ||
		    cscd[7] != SCSI_NAA_BYTES)
			continue;
		copy->disks[i] = take(task->lun, cscd + 8);
		if (copy->disks[i] && scsi_get(cscd + 29, 3) != copy->disks[i]->medium.block_size)
			return refuse(task, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	}
	return 0;
}

static int has_range(const struct scsi_lun *lun, uint64_t lba, uint64_t length)
{
	uint64_t blocks = scsi_blocks(lun);

	return lba <= blocks && length <= (blocks - lba) * lun->medium.block_size;
}

static int plan_segment(struct scsi_task *task, struct copy *copy, unsigned n)
{
	const uint8_t *at = copy->list + HEADER + copy->cscds * CSCD + n * SEGMENT;
	uint64_t from = scsi_get(at + 4, 2), to = scsi_get(at + 6, 2);
	uint64_t from_lba = scsi_get(at + 12, 8), to_lba = scsi_get(at + 20, 8);
	struct segment *segment = &copy->segment[n];
	int by_destination = at[1] & 2;

	if (at[0] != BLOCK_TO_BLOCK)
		return refuse(task, SCSI_UNSUPPORTED_SEGMENT_DESCRIPTOR);
	if (scsi_get(at + 2, 2) != SEGMENT - 4 || from >= copy->cscds || to >= copy->cscds)
		return refuse(task, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	segment->from = copy->disks[from];
	segment->to = copy->disks[to];
	if (!segment->from || !segment->to)
		return abort_copy(task, n, SCSI_COPY_TARGET_NOT_REACHABLE);
	segment->length = scsi_get(at + 10, 2) *
			  (by_destination ? segment->to : segment->from)->medium.block_size;
	if (segment->length > SCSI_COPY_SEGMENT_BYTES)
		return refuse(task, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	if (segment->length % segment->from->medium.block_size ||
	    segment->length % segment->to->medium.block_size)
		return abort_copy(task, n, SCSI_INEXACT_SEGMENT);
	if (!has_range(segment->from, from_lba, segment->length) ||
	    !has_range(segment->to, to_lba, segment->length))
		return abort_copy(task, n, SCSI_LBA_OUT_OF_RANGE);
	if (segment->to->medium.read_only)
		return abort_copy(task, n, SCSI_WRITE_PROTECTED);
	segment->from_at = from_lba * segment->from->medium.block_size;
	segment->to_at = to_lba * segment->to->medium.block_size;
	return 0;
}

static int writes_source(const struct segment *writer, const struct segment *reader)
{
	return writer->to == reader->from && writer->length && reader->length &&
	       writer->to_at < reader->from_at + reader->length &&
	       reader->from_at < writer->to_at + writer->length;
}

static int plan(struct scsi_task *task, struct copy *copy)
{
	const uint8_t *end = copy->list + HEADER + copy->cscds * CSCD;

	if (scsi_get(copy->list + 8, 4) % SEGMENT)
		return refuse(task, copy->segments && end[0] != BLOCK_TO_BLOCK
					    ? SCSI_UNSUPPORTED_SEGMENT_DESCRIPTOR
					    : SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	for (unsigned n = 0; n < copy->segments; n++) {
		if (plan_segment(task, copy, n))
			return -1;
		for (unsigned before = 0; before <= n; before++)
			if (writes_source(&copy->segment[n], &copy->segment[before]))
				return refuse(task, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
	}
	return 0;
}

static int read_and_write(const struct segment *segment, uint64_t done, int *writing)
{
	const struct scsi_lun *from = segment->from, *to = segment->to;
	void *part = aligned_alloc(4096, PART);
	int error = part ? 0 : -ENOMEM;

	while (done < segment->length && !error) {
		uint64_t left = segment->length - done, now = left < PART ? left : PART;

		*writing = 0;
		error = from->plugin->read(from->context, part, now, segment->from_at + done);
		if (error)
			break;
		*writing = 1;
		error = to->plugin->write(to->context, part, now, segment->to_at + done);
		done += now;
	}
	free(part);
	return error;
}

static int copy_segment(const struct segment *segment, int *writing)
{
	const struct scsi_lun *from = segment->from;
	struct scsi_lun *to = segment->to;
	uint64_t done = 0;
	int error = 0;

	*writing = 1;
	pthread_rwlock_rdlock(&to->order);
	if (from->plugin == to->plugin && from->plugin->copy) {
		error = from->plugin->copy(from->context, segment->from_at, to->context,
					   segment->to_at, segment->length, &done);
		/* What it did is whole blocks, so the rest is too. */
		if (error == -EOPNOTSUPP)
			error = 0;
	}
	if (!error && done < segment->length)
		error = read_and_write(segment, done, writing);
	pthread_rwlock_unlock(&to->order);
	if (!error && to->medium.write_cache &&
	    !__atomic_load_n(&to->write_cache, __ATOMIC_RELAXED))
		error = to->plugin->flush(to->context);
	return error;
}

/* What is remembered of a copy, for RECEIVE COPY RESULTS. NULL: one of this identifier is under way. */
static struct scsi_copied *begin(struct scsi_lun *lun, uint8_t id)
{
	struct scsi_copied *found = NULL;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < SCSI_COPIES_KEPT && !found; i++)
		if (lun->copies[i].state != SCSI_COPY_NONE && lun->copies[i].id == id)
			found = &lun->copies[i];
	for (unsigned i = 0; i < SCSI_COPIES_KEPT && !found; i++) {
		struct scsi_copied *oldest = &lun->copies[lun->next_copy++ % SCSI_COPIES_KEPT];

		if (oldest->state != SCSI_COPY_RUNNING)
			found = oldest;
	}
	if (found && found->state == SCSI_COPY_RUNNING)
		found = NULL;
	if (found)
		*found = (struct scsi_copied){.id = id, .state = SCSI_COPY_RUNNING};
	pthread_mutex_unlock(&lock);
	return found;
}

static void tell(struct scsi_copied *copied, enum scsi_copy_state state, unsigned segments,
		 uint64_t bytes)
{
	if (!copied)
		return;
	pthread_mutex_lock(&lock);
	copied->state = state;
	copied->segments = (uint16_t)segments;
	copied->bytes = bytes;
	pthread_mutex_unlock(&lock);
}

int scsi_copied(struct scsi_lun *lun, uint8_t id, struct scsi_copied *out)
{
	int found = 0;

	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < SCSI_COPIES_KEPT && !found; i++)
		if (lun->copies[i].state != SCSI_COPY_NONE && lun->copies[i].id == id) {
			*out = lun->copies[i];
			found = 1;
		}
	pthread_mutex_unlock(&lock);
	return found;
}

static void carry_out(struct scsi_task *task, const struct copy *copy, struct scsi_copied *copied)
{
	uint64_t bytes = 0;

	for (unsigned n = 0; n < copy->segments; n++) {
		int writing, error = copy_segment(&copy->segment[n], &writing);

		if (error) {
			scsi_fail(task, error, writing);
			if (task->status == SCSI_CHECK_CONDITION)
				abort_copy(task, n, (unsigned)scsi_get(task->sense + 12, 2));
			return;
		}
		bytes += copy->segment[n].length;
		tell(copied, SCSI_COPY_RUNNING, n + 1, bytes);
	}
}

void scsi_extended_copy(struct scsi_task *task, const struct scsi_row *row)
{
	uint64_t length = scsi_count(task, row);
	struct scsi_copied *copied = NULL, last = {0};
	struct copy copy = {0};
	int keeps;

	if (!length || read_list(task, length, &copy))
		return;
	keeps = (copy.list[1] >> 3 & 3) != NO_LIST_ID;
	if (!keeps && copy.list[0]) {
		refuse(task, SCSI_INVALID_FIELD_IN_PARAMETER_LIST);
		return;
	}
	if (keeps && !(copied = begin(task->lun, copy.list[0]))) {
		refuse(task, SCSI_OPERATION_IN_PROGRESS);
		return;
	}
	if (!find_disks(task, &copy) && !plan(task, &copy))
		carry_out(task, &copy, copied);
	put(&copy);
	if (!copied)
		return;
	scsi_copied(task->lun, copy.list[0], &last);
	tell(copied, task->status ? SCSI_COPY_FAILED : SCSI_COPY_DONE, last.segments, last.bytes);
}

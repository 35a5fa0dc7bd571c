/* Bytes of the file, by whichever way the target uses: its mapping, or O_DIRECT. Between enter and
 * leave, with `order` held as said. Ranges are checked already. 0 or -errno. */
#ifndef EXPORT_MEDIA_H
#define EXPORT_MEDIA_H

#include <stddef.h>
#include <stdint.h>

struct export_target;

int media_read(struct export_target *target, void *buffer, size_t length, uint64_t offset);
/* 1: media_write() of this range reads first, and wants `order` exclusively. */
int media_is_partial(const struct export_target *target, size_t length, uint64_t offset);
int media_write(struct export_target *target, const void *buffer, size_t length, uint64_t offset);
int media_zero(struct export_target *target, size_t length, uint64_t offset);
int media_compare(struct export_target *target, const void *expected, size_t length,
		  uint64_t offset, size_t *at);
/* The blocks go back to the file system. Without a seal of ours, and outside enter and leave. */
int media_punch(struct export_target *target, size_t length, uint64_t offset);
/* 1: `error` is of the kernel's asking the keeper of the seals, which fails closed, and not of the medium. The
 * call has done nothing, and may be made again. */
int media_is_refused(int error);
/* Before the try after the n-th refusal. */
void media_rest(unsigned int n);
/* What was written to the range is durable. */
int media_settle(struct export_target *target, size_t length, uint64_t offset);

#endif

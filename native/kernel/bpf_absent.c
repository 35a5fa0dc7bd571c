/* In place of bpf.c and bpf_load.c where libbpf or clang was not there at build time. */
#include <errno.h>
#include <stdio.h>

#include "sealsvc/bpf.h"

int seal_bpf_open(const char *object, const char *directory, const char *without,
		  struct seal_bpf **out, char *why, size_t size)
{
	(void)object, (void)directory, (void)without, (void)out;
	snprintf(why, size, "built without libbpf or without clang");
	return -ENOSYS;
}

/* The others take what open gave: there is none. */
void seal_bpf_close(struct seal_bpf *bpf)
{
	(void)bpf;
}

int seal_bpf_unpin(const char *directory)
{
	(void)directory;
	return 0;
}

size_t seal_bpf_programs(struct seal_bpf *bpf, struct seal_bpf_program *out, size_t max)
{
	(void)bpf, (void)out, (void)max;
	return 0;
}

void seal_bpf_exempt(struct seal_bpf *bpf, int32_t pid, uint64_t start_time)
{
	(void)bpf, (void)pid, (void)start_time;
}

int seal_bpf_identify(int fd, struct seal_bpf_file *out)
{
	(void)fd, (void)out;
	return -ENOSYS;
}

int seal_bpf_put(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint32_t generation,
		 uint32_t reflink, const struct seal_bpf_range *range)
{
	(void)bpf, (void)file, (void)generation, (void)reflink, (void)range;
	return -ENOSYS;
}

int seal_bpf_take(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint64_t token)
{
	(void)bpf, (void)file, (void)token;
	return -ENOSYS;
}

int64_t seal_bpf_list(struct seal_bpf *bpf, struct seal_bpf_seal *out, size_t max)
{
	(void)bpf, (void)out, (void)max;
	return -ENOSYS;
}

int seal_bpf_barrier(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint32_t timeout_us)
{
	(void)bpf, (void)file, (void)timeout_us;
	return -ENOSYS;
}

int seal_bpf_trip(struct seal_bpf *bpf, const char *object, const char *directory, const char *type)
{
	(void)bpf, (void)object, (void)directory, (void)type;
	return 0;
}

size_t seal_bpf_trip_programs(const struct seal_bpf *bpf, struct seal_bpf_program *out, size_t max)
{
	(void)bpf, (void)out, (void)max;
	return 0;
}

size_t seal_bpf_trips(struct seal_bpf *bpf, struct seal_bpf_trip *out, size_t max)
{
	(void)bpf, (void)out, (void)max;
	return 0;
}

const char *seal_trip_function(uint32_t function)
{
	(void)function;
	return "";
}

int seal_symbolise(const uint64_t *addresses, size_t count, struct seal_symbol *out)
{
	(void)addresses, (void)count, (void)out;
	return -ENOSYS;
}

int seal_bpf_fd(const struct seal_bpf *bpf)
{
	(void)bpf;
	return -ENOSYS;
}

size_t seal_bpf_events(struct seal_bpf *bpf, struct seal_bpf_event *out, size_t max)
{
	(void)bpf, (void)out, (void)max;
	return 0;
}

uint64_t seal_bpf_lost_events(const struct seal_bpf *bpf)
{
	(void)bpf;
	return 0;
}

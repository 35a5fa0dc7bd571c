/* The loader of native/bpf: BPF LSM programs that refuse what changes a sealed map, pinned so that they
 * go on refusing when the service is gone. Without libbpf at build time seal_bpf_open() says -ENOSYS. */
#ifndef SEALSVC_BPF_H
#define SEALSVC_BPF_H

#include <stddef.h>
#include <stdint.h>

#include "sealsvc/bpf_trip_layout.h"

struct seal_bpf;

/* Load the object file, attach its programs and pin them below `directory` (on a bpffs, made when it is
 * missing). What is pinned there already goes on: its maps are taken over, and each old program goes
 * when the new one in its place is attached. 0 or -errno: -EPROTO when the pinned maps are of another
 * layout, -EOPNOTSUPP when the kernel runs no BPF LSM programs. `why` says it in words. `without` names
 * programs to do without, with commas between; or NULL. */
int seal_bpf_open(const char *object, const char *directory, const char *without,
		  struct seal_bpf **out, char *why, size_t size);
/* What is pinned stays, and refuses. */
void seal_bpf_close(struct seal_bpf *bpf);
/* Take all pins away; with them every refusal ends. 0 or -errno (0 when there are none). */
int seal_bpf_unpin(const char *directory);

enum seal_bpf_state {
	SEAL_BPF_OFF,
	SEAL_BPF_ON,
	SEAL_BPF_NEEDLESS, /* this kernel has nothing that it would be for */
};
struct seal_bpf_program {
	const char *name;
	int32_t state;	 /* enum seal_bpf_state */
	int32_t spared;	 /* where it is skipped, others make up for it */
	uint64_t misses; /* how often the kernel skipped it */
	char why[160];
};
/* The programs, at most max. Returns how many. */
size_t seal_bpf_programs(struct seal_bpf *bpf, struct seal_bpf_program *out, size_t max);

/* Exempt one process, by its number in the initial pid namespace and its start time as in
 * /proc/PID/stat. 0: nobody. */
void seal_bpf_exempt(struct seal_bpf *bpf, int32_t pid, uint64_t start_time);

/* The inode behind fd, as the maps name it. 0 or -errno. */
int seal_bpf_identify(int fd, struct seal_bpf_file *out);

/* Add a range to a file, or replace the one with its token. -ENOSPC: there are SEAL_BPF_RANGES. */
int seal_bpf_put(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint32_t generation,
		 uint32_t reflink, const struct seal_bpf_range *range);
/* Take it away. 0, or -errno (-ENOENT: no such range). */
int seal_bpf_take(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint64_t token);

struct seal_bpf_seal {
	struct seal_bpf_file file;
	uint64_t token;
};
/* All ranges in force, at most max. Returns how many there are, or -errno. */
int64_t seal_bpf_list(struct seal_bpf *bpf, struct seal_bpf_seal *out, size_t max);

/* Wait until no operation is under way on the file that began before the call. 1, or 0 when
 * timeout_us are over and that cannot be said. */
int seal_bpf_barrier(struct seal_bpf *bpf, const struct seal_bpf_file *file, uint32_t timeout_us);

/* Attach the tripwire's programs to the functions of a file system type ("xfs", "ext4") that is in the
 * kernel by now, and pin them below `directory`; once for each type. They tell of each change of a sealed
 * range's map, by whomever. Returns how many are attached: seal_bpf_trip_programs() has the reasons. */
int seal_bpf_trip(struct seal_bpf *bpf, const char *object, const char *directory,
		  const char *type);
size_t seal_bpf_trip_programs(const struct seal_bpf *bpf, struct seal_bpf_program *out, size_t max);
/* Those that seal_bpf_events() found in their ring. */
size_t seal_bpf_trips(struct seal_bpf *bpf, struct seal_bpf_trip *out, size_t max);
/* The kernel's name of enum seal_trip_function. */
const char *seal_trip_function(uint32_t function);

#define SEAL_SYMBOL 64
struct seal_symbol {
	uint64_t address; /* where it begins; 0: not known */
	char name[SEAL_SYMBOL];
};
/* The kernel's functions that have these addresses. It reads all symbols: some 100 ms. 0 or -errno. */
int seal_symbolise(const uint64_t *addresses, size_t count, struct seal_symbol *out);

/* Readable while events or trips wait. Owned by `bpf`. */
int seal_bpf_fd(const struct seal_bpf *bpf);
size_t seal_bpf_events(struct seal_bpf *bpf, struct seal_bpf_event *out, size_t max);
uint64_t seal_bpf_lost_events(const struct seal_bpf *bpf);

#endif

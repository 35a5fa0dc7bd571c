/* What a backend of the TCMU runner is: one struct of functions. null.c is a whole one.
 *
 * Functions return 0 or a negative errno, which becomes SCSI sense: EIO a medium error, EROFS write protected,
 * ENOSPC no space, EAGAIN and ENOMEM busy (the initiator tries again), anything else an internal failure. They
 * are called from several threads at once. Offsets and lengths are bytes, whole blocks, inside the medium. */
#ifndef SEALSVC_TCMU_PLUGIN_H
#define SEALSVC_TCMU_PLUGIN_H

#include <stdint.h>
#include <sys/uio.h>

struct tcmu_medium {
	uint64_t size;		      /* bytes, set by open */
	unsigned block_size;	      /* as LIO was configured (hw_block_size) */
	unsigned physical_block_size; /* 0: block_size */
	unsigned discard_granularity; /* bytes; 0: no UNMAP */
	int read_only;
	int write_cache; /* what was written is durable only after flush */
};

struct tcmu_plugin {
	const char *subtype; /* devices tcm-user/HBA/NAME/SUBTYPE/PATH are this plugin's */
	const char *about;
	int (*open)(const char *path, struct tcmu_medium *medium, void **context);
	void (*close)(void *context); /* no other call is under way */
	void (*stop)(void *context);  /* may be NULL. Calls that wait are to fail with -ESHUTDOWN */
	int (*read)(void *context, void *buffer, uint64_t length, uint64_t offset);
	int (*write)(void *context, const void *buffer, uint64_t length, uint64_t offset);
	int (*flush)(void *context);
	/* May be NULL: -EOPNOTSUPP. */
	int (*discard)(void *context, uint64_t length, uint64_t offset);
	int (*zero)(void *context, uint64_t length, uint64_t offset);
	/* Copies from one medium of this plugin to another, or to a range of the same that does not overlap;
	 * `*done` says how many bytes, whole 4 KiB, also when it fails. May be NULL. -EOPNOTSUPP: the rest is to
	 * be read and written. */
	int (*copy)(void *from, uint64_t from_offset, void *to, uint64_t to_offset, uint64_t length,
		    uint64_t *done);
};

/* All that were compiled in, ended by NULL. */
extern const struct tcmu_plugin *const tcmu_plugins[];

#endif

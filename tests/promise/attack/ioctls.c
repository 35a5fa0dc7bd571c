/* ioctls that share, exchange, allocate or describe blocks. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attack.h"

/* xfs_fs.h and fs/ext4/ext4.h. */
#define XFS_IOC_ALLOCSP64 0x40305824u
#define XFS_IOC_FREESP64 0x40305825u
#define XFS_IOC_RESVSP 0x40305828u
#define XFS_IOC_UNRESVSP 0x40305829u
#define XFS_IOC_RESVSP64 0x4030582au
#define XFS_IOC_UNRESVSP64 0x4030582bu
#define XFS_IOC_ZERO_RANGE 0x40305839u
#define XFS_IOC_SWAPEXT 0xc0c0586du
#define XFS_IOC_EXCHANGE_RANGE 0x40285881u
#define XFS_IOC_START_COMMIT 0x80585882u
#define XFS_IOC_COMMIT_RANGE 0x40585883u
#define EXT4_IOC_MOVE_EXT 0xc028660fu
#define EXT4_IOC_MIGRATE 0x6609u
#define EXT4_IOC_ALLOC_DA_BLKS 0x660cu
#define EXT4_IOC_SWAP_BOOT 0x6611u
#define EXT4_IOC_PRECACHE_EXTENTS 0x6612u
#define EXT4_IOC_CLEAR_ES_CACHE 0x6628u
#define FS_IOC_ENABLE_VERITY_NR 0x40806685u

struct space { /* struct xfs_flock64 */
	int16_t type, whence;
	int32_t pad;
	int64_t start, length;
	int32_t sysid;
	uint32_t pid;
	int32_t padding[4];
};

struct exchange { /* struct xfs_exchange_range */
	int32_t fd;
	uint32_t pad;
	uint64_t from, to, length, flags;
};

struct move_extent { /* fs/ext4/ext4.h */
	uint32_t reserved, donor;
	uint64_t from, to, length, moved;
};

struct swapext { /* struct xfs_swapext, with struct xfs_bstat inside */
	int64_t version, target, temporary, offset, length;
	char pad[16];
	char inode[32];
	int64_t size;
	struct {
		int64_t seconds;
		int32_t nanoseconds, pad;
	} accessed, modified, changed;
	char rest[48];
};

static long call(const struct op *op, int fd, uint32_t command, void *argument)
{
	long done = syscall(SYS_ioctl, (uint64_t)op->high << 32 | (uint32_t)fd,
			    (uint64_t)op->high << 32 | command, argument);

	return done < 0 ? -errno : done;
}

/* Whole blocks most of the time; else it is refused by the file system itself. */
static uint64_t at(const struct op *op, uint64_t offset)
{
	offset %= 2 * FILE_BYTES;
	return op->sub & 7 ? offset & ~(uint64_t)(BLOCK - 1) : offset;
}

static uint64_t size(const struct op *op)
{
	uint64_t length = op->length % (FILE_BYTES / 2);

	return op->sub & 7 ? length & ~(uint64_t)(BLOCK - 1) : length;
}

long do_clone(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0), other = a->held[op->other];
	long done;

	if (fd < 0)
		return fd;
	if (op->sub & 0x80) { /* the other way: the target is what is shared */
		struct file_clone_range clone = {fd, at(op, op->offset), size(op),
						 at(op, op->second)};

		done = call(op, other, FICLONERANGE, &clone);
	} else if (op->flags % 16 == 0) {
		done = call(op, fd, FICLONE, (void *)(long)other);
	} else {
		struct file_clone_range clone = {other, at(op, op->second), size(op),
						 at(op, op->offset)};

		done = call(op, fd, FICLONERANGE, &clone);
	}
	target_close(a, op, fd);
	return done;
}

/* Both hold the same bytes first, else nothing would be shared. */
long do_dedupe(struct attacker *a, const struct op *op)
{
	struct {
		struct file_dedupe_range range;
		struct file_dedupe_range_info info;
	} dedupe = {
		.range = {.src_offset = at(op, op->second), .src_length = 65536, .dest_count = 1}};
	int fd = target_open(a, op, 0), other = a->held[op->other];
	long done;

	if (fd < 0)
		return fd;
	dedupe.info.dest_fd = other;
	dedupe.info.dest_offset = at(op, op->offset);
	memset(a->buffer, 0, 65536);
	if (pwrite(fd, a->buffer, 65536, (off_t)dedupe.range.src_offset) > 0 &&
	    pwrite(other, a->buffer, 65536, (off_t)dedupe.info.dest_offset) > 0)
		done = call(op, fd, FIDEDUPERANGE, &dedupe);
	else
		done = -errno;
	target_close(a, op, fd);
	if (done == 0)
		done = dedupe.info.status < 0 ? dedupe.info.status : 0;
	return done;
}

long do_exchange(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0), other = a->held[op->other];
	struct exchange exchange = {
		other, 0, at(op, op->second), at(op, op->offset), size(op), op->flags & 7};
	uint64_t commit[11] = {0};
	long done;

	if (fd < 0)
		return fd;
	if (op->sub & 8) {
		done = call(op, fd, XFS_IOC_START_COMMIT, commit);
		memcpy(commit, &exchange, sizeof(exchange));
		if (done == 0)
			done = call(op, fd, XFS_IOC_COMMIT_RANGE, commit);
	} else {
		done = call(op, fd, XFS_IOC_EXCHANGE_RANGE, &exchange);
	}
	target_close(a, op, fd);
	return done;
}

long do_xfs_space(struct attacker *a, const struct op *op)
{
	static const uint32_t commands[] = {
		XFS_IOC_RESVSP,	    XFS_IOC_RESVSP64,  XFS_IOC_UNRESVSP, XFS_IOC_UNRESVSP64,
		XFS_IOC_ZERO_RANGE, XFS_IOC_ALLOCSP64, XFS_IOC_FREESP64};
	struct space space = {.start = (int64_t)at(op, op->offset), .length = (int64_t)size(op)};
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	done = call(op, fd, commands[op->argument % 7], &space);
	target_close(a, op, fd);
	return done;
}

long do_swapext(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0), other = a->held[op->other];
	struct swapext swap = {.target = fd, .temporary = other};
	struct stat st;
	long done;

	if (fd < 0)
		return fd;
	fstat(fd, &st);
	swap.length = swap.size = st.st_size;
	swap.modified.seconds = st.st_mtim.tv_sec;
	swap.modified.nanoseconds = (int32_t)st.st_mtim.tv_nsec;
	swap.changed.seconds = st.st_ctim.tv_sec;
	swap.changed.nanoseconds = (int32_t)st.st_ctim.tv_nsec;
	done = call(op, fd, XFS_IOC_SWAPEXT, &swap);
	target_close(a, op, fd);
	return done;
}

long do_move_ext(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0), other = a->held[op->other];
	struct move_extent move = {.donor = (uint32_t)other,
				   .from = op->offset / BLOCK % (FILE_BYTES / BLOCK),
				   .to = op->sub & 7 ? op->offset / BLOCK % (FILE_BYTES / BLOCK)
						     : op->second / BLOCK,
				   .length = op->length / BLOCK % 64 + 1};
	long done;

	if (fd < 0)
		return fd;
	done = call(op, fd, EXT4_IOC_MOVE_EXT, &move);
	target_close(a, op, fd);
	return done;
}

long do_swap_boot(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	done = call(op, fd, EXT4_IOC_SWAP_BOOT, NULL);
	target_close(a, op, fd);
	return done;
}

/* Flags, hints and project: an owner may raise the copy-on-write hint, root may do all. */
long do_attributes(struct attacker *a, const struct op *op)
{
	static const uint32_t flags[] = {0x8 /* SYNC */,	0x40 /* NODUMP */,
					 0x80 /* NOATIME */,	0x4000 /* JOURNAL_DATA */,
					 0x80000 /* EXTENTS */, 0x2000000 /* DAX */};
	static const uint32_t xflags[] = {0x800 /* EXTSIZE */,
					  0x10000 /* COWEXTSIZE */,
					  0x10000,
					  0x1 /* REALTIME */,
					  0x8000 /* DAX */,
					  0x20,
					  0x40};
	static const uint32_t hints[] = {0, 4096, 65536, 131072, 1048576, 4194304};
	int fd = target_open(a, op, 0);
	struct fsxattr attributes;
	unsigned current = 0;
	long done;

	if (fd < 0)
		return fd;
	if (op->sub & 1) {
		done = call(op, fd, (uint32_t)FS_IOC_GETFLAGS, &current);
		current ^= flags[op->argument % 6];
		if (done == 0)
			done = call(op, fd, (uint32_t)FS_IOC_SETFLAGS, &current);
	} else {
		done = call(op, fd, (uint32_t)FS_IOC_FSGETXATTR, &attributes);
		attributes.fsx_xflags ^= xflags[op->argument % 7];
		attributes.fsx_extsize = hints[op->argument / 7 % 6];
		attributes.fsx_cowextsize = hints[op->argument / 49 % 6];
		if (done == 0)
			done = call(op, fd, (uint32_t)FS_IOC_FSSETXATTR, &attributes);
	}
	target_close(a, op, fd);
	return done;
}

/* Other commands that take a file; what they read is nothing but zeros. */
long do_known_ioctl(struct attacker *a, const struct op *op)
{
	static const uint32_t commands[] = {
		EXT4_IOC_MIGRATE,	 EXT4_IOC_ALLOC_DA_BLKS,  EXT4_IOC_PRECACHE_EXTENTS,
		EXT4_IOC_CLEAR_ES_CACHE, FS_IOC_ENABLE_VERITY_NR, 0x5821 /* FIONREAD-like */,
		0x1 /* FIBMAP */,	 0x541b /* FIONREAD */,	  0x5460,
	};
	int fd = target_open(a, op, 0);
	long done;

	if (fd < 0)
		return fd;
	memset(a->buffer, 0, BLOCK);
	done = call(op, fd, commands[op->argument % (sizeof(commands) / sizeof(commands[0]))],
		    a->buffer);
	target_close(a, op, fd);
	return done;
}

long do_trim(struct attacker *a, const struct op *op)
{
	struct fstrim_range range = {0, UINT64_MAX, op->length % 65536};

	return call(op, a->directory, (uint32_t)FITRIM, &range);
}

/* EXTENDED COPY between two files of the plugin "file", and within one: DIRECTORY is on the file system. Prints
 * how many bytes of the second file's copy are in extents that are shared. */
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../../tests/check.h"
#include "../scsi.h"

#define BLOCK 512u
#define SIZE (4u << 20)

extern const struct tcmu_plugin tcmu_file;

static uint8_t bytes[2][SIZE], list[16 + 2 * 32 + 28];
static struct scsi_lun luns[2];

static void open_file(unsigned n, const char *directory)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%u", directory, n);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	for (size_t i = 0; i < SIZE; i++)
		bytes[n][i] = (uint8_t)(i * 7 + i / 4093 + n);
	CHECK(fd >= 0 && pwrite(fd, bytes[n], SIZE, 0) == SIZE && fsync(fd) == 0);
	close(fd);
	luns[n] = (struct scsi_lun){.plugin = &tcmu_file,
				    .medium = {.block_size = BLOCK},
				    .order = PTHREAD_RWLOCK_INITIALIZER};
	snprintf(luns[n].serial, sizeof(luns[n].serial), "disk %u", n);
	CHECK(tcmu_file.open(path, &luns[n].medium, &luns[n].context) == 0);
	scsi_join(&luns[n]);
}

/* Blocks of the first disk to the one numbered `to`, and of `bytes` as well. */
static void copy(unsigned to, uint64_t from_lba, uint64_t to_lba, unsigned blocks)
{
	static const uint8_t cdb[16] = {0x83, [13] = sizeof(list)};
	struct iovec iov = {list, sizeof(list)};
	struct scsi_task task = {
		.lun = &luns[0], .cdb = cdb, .iov = &iov, .iov_count = 1, .bytes = sizeof(list)};
	uint8_t *segment = list + 16 + 2 * 32;

	memset(list, 0, sizeof(list));
	scsi_put(list + 2, 2, 2 * 32);
	scsi_put(list + 8, 4, 28);
	for (unsigned n = 0; n < 2; n++) {
		uint8_t *cscd = list + 16 + n * 32;

		cscd[0] = 0xe4;
		cscd[4] = 1;
		cscd[5] = 3;
		cscd[7] = SCSI_NAA_BYTES;
		scsi_naa(&luns[n], cscd + 8);
		scsi_put(cscd + 29, 3, BLOCK);
	}
	segment[0] = 0x02;
	segment[3] = 24;
	segment[7] = (uint8_t)to;
	scsi_put(segment + 10, 2, blocks);
	scsi_put(segment + 12, 8, from_lba);
	scsi_put(segment + 20, 8, to_lba);
	scsi_run(&task);
	CHECK(task.status == SCSI_GOOD);
	memcpy(bytes[to] + to_lba * BLOCK, bytes[0] + from_lba * BLOCK, (size_t)blocks * BLOCK);
}

static void check_file(unsigned n)
{
	static uint8_t found[SIZE];

	CHECK(tcmu_file.read(luns[n].context, found, SIZE, 0) == 0);
	CHECK(memcmp(found, bytes[n], SIZE) == 0);
}

static uint64_t shared(const char *directory)
{
	static struct {
		struct fiemap head;
		struct fiemap_extent extents[64];
	} map;
	char path[4096];
	uint64_t sum = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/1", directory);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	map.head = (struct fiemap){
		.fm_length = SIZE, .fm_flags = FIEMAP_FLAG_SYNC, .fm_extent_count = 64};
	CHECK(fd >= 0 && ioctl(fd, FS_IOC_FIEMAP, &map) == 0);
	close(fd);
	for (unsigned i = 0; i < map.head.fm_mapped_extents; i++)
		if (map.extents[i].fe_flags & FIEMAP_EXTENT_SHARED)
			sum += map.extents[i].fe_length;
	return sum;
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	open_file(0, argv[1]);
	open_file(1, argv[1]);
	copy(1, 0, 2048, 2048); /* aligned: can be shared */
	check_file(1);
	printf("shared %llu\n", (unsigned long long)shared(argv[1]));
	copy(1, 3, 7, 1001); /* nothing that is a whole block of the file system */
	check_file(1);
	copy(0, 0, 4096, 4096); /* within one */
	check_file(0);
	check_file(1);
	for (unsigned n = 0; n < 2; n++) {
		scsi_leave(&luns[n]);
		tcmu_file.close(luns[n].context);
	}
	return 0;
}

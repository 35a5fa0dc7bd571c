/* The handler and its threads against the model of the kernel, with a socket in the place of /dev/uioN: commands
 * of all kinds at once, and handlers that end and begin again meanwhile. */
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include "../../../tests/check.h"
#include "../handler.h"
#include "model.h"

static struct model *model;
static int kernel_end, handler_end;

/* Linked with --wrap for each of the three. */
int __real_open(const char *path, int flags, ...);
void *__real_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t length);
int __wrap_open(const char *path, int flags, mode_t mode);
void *__wrap_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t length);

int __wrap_open(const char *path, int flags, mode_t mode)
{
	return strncmp(path, "/dev/uio", 8) ? __real_open(path, flags, mode) : dup(handler_end);
}

void *__wrap_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset)
{
	return length == model->size ? model->region
				     : __real_mmap(at, length, protection, flags, fd, offset);
}

int __wrap_munmap(void *at, size_t length)
{
	return at == model->region ? 0 : __real_munmap(at, length);
}

#define PLACES 48 /* commands at once */
#define SIZE 512u
#define OPS 6000

static uint8_t medium[PLACES * SIZE];

static int ram_open(const char *path, struct tcmu_medium *made, void **context)
{
	(void)path;
	*context = NULL;
	made->size = sizeof(medium);
	made->write_cache = 1;
	return 0;
}

static void ram_close(void *context)
{
	(void)context;
}

static int ram_read(void *context, void *buffer, uint64_t length, uint64_t offset)
{
	(void)context;
	if (offset % 3 == 0)
		sched_yield();
	memcpy(buffer, medium + offset, length);
	return 0;
}

static int ram_write(void *context, const void *buffer, uint64_t length, uint64_t offset)
{
	(void)context;
	if (offset % 5 == 0)
		usleep(50); /* others overtake it */
	memcpy(medium + offset, buffer, length);
	return 0;
}

static int ram_flush(void *context)
{
	(void)context;
	return 0;
}

static const struct tcmu_plugin ram = {.subtype = "ram",
				       .open = ram_open,
				       .close = ram_close,
				       .read = ram_read,
				       .write = ram_write,
				       .flush = ram_flush};

/* A place has one command at a time: a block, and a piece of the data area. */
static struct place {
	uint16_t id; /* 0: none */
	uint8_t opcode;
	uint8_t now, wanted; /* what its block is full of */
} places[PLACES];

static uint8_t *data_of(unsigned place)
{
	return (uint8_t *)model->region + MODEL_RING_OFFSET + model->ring_size +
	       (size_t)place * 2 * SIZE;
}

static int post(unsigned number)
{
	static const uint8_t opcodes[] = {0x28, 0x2a, 0x89, 0x12, 0xee};
	struct place *place = &places[number];
	uint8_t opcode = opcodes[rand() % 5], cdb[TCMU_CDB] = {opcode};

	place->wanted = opcode == 0x2a || opcode == 0x89 ? (uint8_t)rand() : place->now;
	if (opcode == 0x89) {
		cdb[9] = (uint8_t)number;
		cdb[13] = 1;
		memset(data_of(number), place->now, SIZE);
		memset(data_of(number) + SIZE, place->wanted, SIZE);
	} else if (opcode == 0x12) {
		cdb[4] = 36;
	} else if (opcode != 0xee) {
		cdb[5] = (uint8_t)number;
		cdb[8] = 1;
		memset(data_of(number), opcode == 0x2a ? place->wanted : 0xcc, SIZE);
	}
	model->data_at = (size_t)number * 2 * SIZE;
	if (!model_post(model, cdb, opcode == 0xee ? 0 : 2, opcode == 0x89 ? SIZE : SIZE / 2))
		return 0;
	place->id = model->next_id;
	place->opcode = opcode;
	return 1;
}

static int is_full_of(const uint8_t *data, uint8_t what)
{
	return data[0] == what && memcmp(data, data + 1, SIZE - 1) == 0;
}

static void check_answer(unsigned number)
{
	struct place *place = &places[number];

	if (!place->id || model->outstanding[place->id] != 2)
		return;
	CHECK(model->status[place->id] == (place->opcode == 0xee ? 2 : 0));
	CHECK(place->opcode != 0x28 || is_full_of(data_of(number), place->now));
	CHECK(is_full_of(medium + number * SIZE, place->wanted));
	CHECK(place->opcode != 0x12 || memcmp(data_of(number) + 8, "SEALSVC", 7) == 0);
	place->now = place->wanted;
	place->id = 0;
}

static void kernel(unsigned until)
{
	struct pollfd told = {.fd = kernel_end, .events = POLLIN};
	char word[4] = {0};

	while (model->answered < until) {
		for (unsigned number = 0; number < PLACES; number++)
			if (!places[number].id && model->posted < OPS)
				(void)post(number);
		(void)send(kernel_end, word, 4, MSG_DONTWAIT);
		CHECK(poll(&told, 1, 100000) == 1); /* it is answered */
		while (recv(kernel_end, word, 4, MSG_DONTWAIT) == 4)
			;
		model_collect(model);
		CHECK(!model->broken);
		for (unsigned number = 0; number < PLACES; number++)
			check_answer(number);
	}
}

static void run(unsigned flags, unsigned threads, const char *notes)
{
	struct tcmu_device device = {.name = "test"};
	struct tcmu_handler *handler;
	int ends[2];

	model = model_make(2, flags, 8 * 1024 + 8, PLACES * 2 * SIZE);
	memset(medium, 0, sizeof(medium));
	memset(places, 0, sizeof(places));
	device.map_size = model->size;
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
	kernel_end = ends[0];
	handler_end = ends[1];
	for (unsigned part = 1; part <= 6; part++) {
		CHECK(tcmu_handler_start(&device, &ram, notes, threads, &handler) == 0);
		kernel(OPS / 6 * part);
		tcmu_handler_stop(handler); /* with commands in the ring */
	}
	CHECK(model->answered == OPS);
	close(ends[0]);
	close(ends[1]);
	model_free(model);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2); /* a directory for notes */
	run(0, 1, NULL);
	run(MAILBOX_READ_LEN, 4, argv[1]);
	run(MAILBOX_OUT_OF_ORDER | MAILBOX_READ_LEN, 4, argv[1]);
	return 0;
}

/* The handler's side of the ring against the model of the kernel's. */
#include <errno.h>

#include "../../../tests/check.h"
#include "model.h"

#define ODD_RING (7 * 1000 + 8) /* no power of two */
#define BOTH (MAILBOX_OUT_OF_ORDER | MAILBOX_READ_LEN)

static const uint8_t cdb[TCMU_CDB] = {0x28, 1, 2, 3, 4, 5, 6, 7, 8, 9};
static struct tcmu_ring ring;
static struct tcmu_note note;
static unsigned seed;

static unsigned pick(unsigned below)
{
	seed = seed * 1103515245 + 12345;
	return (seed >> 8) % below;
}

/* A status by which an answer can be told to be that of its command. */
static uint8_t status_of(uint16_t id)
{
	return (uint8_t)(id * 7 + 1);
}

static void check_answers(const struct model *model)
{
	CHECK(!model->broken);
	for (unsigned id = 0; id < MODEL_IDS; id++)
		CHECK(model->outstanding[id] != 2 || model->status[id] == status_of((uint16_t)id));
}

static void test_versions(void)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 4096);

	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	model_box(model)->version = 1;
	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	CHECK(ring.flags == 0); /* none were defined then */
	model_box(model)->version = 3;
	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == -EPROTONOSUPPORT);
	model_box(model)->version = 0;
	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == -EPROTONOSUPPORT);
	model_free(model);
}

static void test_fields(unsigned version)
{
	struct model *model = model_make(version, 0, ODD_RING, 8192);
	struct tcmu_command *command;

	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	CHECK(tcmu_ring_next(&ring, &command) == 0 && tcmu_ring_is_idle(&ring));
	CHECK(model_post(model, cdb, 2, 4096));
	CHECK(!tcmu_ring_is_idle(&ring));
	CHECK(tcmu_ring_next(&ring, &command) == 1);
	CHECK(memcmp(command->cdb, cdb, TCMU_CDB) == 0);
	CHECK(command->iov_count == 2 && command->bytes == 8192 && !command->bidi);
	CHECK((char *)command->iov[1].iov_base ==
	      model->region + MODEL_RING_OFFSET + ODD_RING + 4096);
	command->status = 2;
	command->sense[0] = 0x70;
	CHECK(tcmu_ring_done(&ring, command) == 1);
	CHECK(model_entry(model, 0)[model->layout->sense] == 0x70);
	model_collect(model);
	CHECK(model->answered == 1 && model->status[1] == 2 && !model->broken);
	model_free(model);
}

/* Posts and answers at random, in and out of order, round the ring many times. */
static void test_random(unsigned version, unsigned flags, struct tcmu_note *with, unsigned seeded)
{
	struct model *model = model_make(version, flags, ODD_RING, 16384);
	struct tcmu_command *taken[TCMU_COMMANDS];
	unsigned count = 0, turned = 0;

	seed = seeded;
	memset(&note, 0, sizeof(note));
	CHECK(tcmu_ring_open(&ring, model->region, model->size, with) == 0);
	while (model->answered < 5000) {
		if (model->posted < 5000 && pick(2))
			(void)model_post(model, cdb, pick(12), 512);
		if (pick(2) && count < TCMU_COMMANDS && tcmu_ring_next(&ring, &taken[count]) == 1)
			count++;
		if (count && (pick(2) || model->posted == 5000)) {
			unsigned which = pick(count);

			turned += which != 0;
			taken[which]->status = status_of(taken[which]->id);
			tcmu_ring_done(&ring, taken[which]);
			taken[which] = taken[--count];
		}
		model_collect(model);
	}
	CHECK(turned > 100 && model->posted == 5000);
	CHECK(tcmu_ring_is_idle(&ring) && model->cleaned == model_box(model)->head);
	check_answers(model);
	model_free(model);
}

static void test_out_of_order_is_answered_at_once(void)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 16384);
	struct tcmu_command *first, *second;

	memset(&note, 0, sizeof(note));
	CHECK(tcmu_ring_open(&ring, model->region, model->size, &note) == 0);
	CHECK(model_post(model, cdb, 3, 512) && model_post(model, cdb, 3, 512));
	CHECK(tcmu_ring_next(&ring, &first) == 1 && tcmu_ring_next(&ring, &second) == 1);
	second->status = status_of(2);
	CHECK(tcmu_ring_done(&ring, second) == 1);
	model_collect(model);
	CHECK(model->answered == 1 && model->outstanding[2] == 2);
	first->status = status_of(1);
	CHECK(tcmu_ring_done(&ring, first) == 1);
	model_collect(model);
	check_answers(model);
	/* A slot that is too small for the other's request: in order. */
	CHECK(model_post(model, cdb, 12, 512) && model_post(model, cdb, 1, 512));
	CHECK(tcmu_ring_next(&ring, &first) == 1 && tcmu_ring_next(&ring, &second) == 1);
	CHECK(tcmu_ring_done(&ring, second) == 0);
	CHECK(tcmu_ring_done(&ring, first) == 1);
	model_collect(model);
	CHECK(model->answered == 4 && !model->broken);
	model_free(model);
}

/* Everything that waits in the ring, served by a process that was just started. */
static void serve_all(struct model *model, char *region)
{
	struct tcmu_command *command;

	CHECK(tcmu_ring_open(&ring, region, model->size, &note) == 0);
	while (tcmu_ring_next(&ring, &command) == 1) {
		CHECK(memcmp(command->cdb, cdb, TCMU_CDB) == 0 && command->iov_count == 3);
		command->status = status_of(command->id);
		tcmu_ring_done(&ring, command);
	}
}

/* The process dies after step `step` of an answer out of order, of which the last was done by half. The next
 * finds each command that was not answered, once, and at another address. */
static void test_death(unsigned step)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 16384);
	struct tcmu_command *commands[4];
	uint32_t length, third;
	char *before, *after;

	memset(&note, 0, sizeof(note));
	CHECK(tcmu_ring_open(&ring, model->region, model->size, &note) == 0);
	for (int i = 0; i < 4; i++) {
		CHECK(model_post(model, cdb, 3, 512));
		CHECK(tcmu_ring_next(&ring, &commands[i]) == 1);
	}
	length = model_box(model)->head / 4;
	third = 2 * length;
	before = malloc(model->size);
	memcpy(before, model->region, model->size);
	commands[2]->status = status_of(3);
	CHECK(tcmu_ring_done(&ring, commands[2]) == 1);
	after = malloc(model->size);
	memcpy(after, model->region, model->size);
	/* The steps were: the note; the first's request to the third slot; the third's answer to the first
	 * slot; the tail; the note is void. */
	note.armed = step > 0 && step < 7;
	memcpy(model->region, step < 6 ? before : after, model->size);
	if (step >= 2 && step < 6)
		memcpy(model_entry(model, third), after + MODEL_RING_OFFSET + third,
		       step == 2 ? length / 2 : length);
	if (step >= 4 && step < 6)
		memcpy(model_entry(model, 0), after + MODEL_RING_OFFSET, step == 4 ? 40 : length);
	memcpy(before, model->region, model->size);
	free(model->region);
	model->region = before;
	serve_all(model, model->region);
	model_collect(model);
	check_answers(model);
	CHECK(model->answered == 4 && tcmu_ring_is_idle(&ring) && !note.armed);
	free(after);
	model_free(model);
}

static void test_other_entries(void)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 16384);
	struct tcmu_command *command;
	char *entry;

	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	CHECK(model_post_op(model, OP_TMR, 48));
	entry = model_post_op(model, 5, 64);
	CHECK(entry && model_post(model, cdb, 1, 512));
	CHECK(tcmu_ring_next(&ring, &command) == 1);
	CHECK(ring.resets == 1 && ring.unknown == 1 && entry[7] == UFLAG_UNKNOWN_OP);
	CHECK(tcmu_ring_done(&ring, command) == 1 && tcmu_ring_is_idle(&ring));
	/* Two directions, and more parts than are taken: told, with no part to touch. */
	entry = model_post(model, cdb, 1, 512);
	model_put(entry + model->layout->bidi, 1, 4);
	CHECK(tcmu_ring_next(&ring, &command) == 1 && command->bidi && !command->iov_count);
	tcmu_ring_done(&ring, command);
	CHECK(model_post(model, cdb, TCMU_IOVS + 1, 8));
	CHECK(tcmu_ring_next(&ring, &command) == 1 && command->crowded && !command->iov_count);
	model_free(model);
}

static void test_a_short_read_is_told(void)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 16384);
	struct tcmu_command *command;
	char *entry = model_post(model, cdb, 1, 512);
	uint32_t length;

	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	CHECK(tcmu_ring_next(&ring, &command) == 1);
	command->read_len = 36;
	tcmu_ring_done(&ring, command);
	memcpy(&length, entry + model->layout->read_len, 4);
	CHECK(entry[7] == UFLAG_READ_LEN && length == 36);
	model_free(model);
}

/* One field of an entry with a value that leads out of the region. */
static void test_hostile(unsigned at, uint64_t value, size_t bytes)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 4096);
	struct tcmu_command *command;
	char *entry = model_post(model, cdb, 2, 512);

	model_put(entry + at, value, bytes);
	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	CHECK(tcmu_ring_next(&ring, &command) == -EPROTO);
	model_free(model);
}

static void test_hostile_mailbox(unsigned at, uint64_t value)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 4096);

	model_put(model->region + at, value, 4);
	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == -EPROTO);
	model_free(model);
}

static void test_hostility(void)
{
	uint64_t end = MODEL_RING_OFFSET + ODD_RING + 4096;

	test_hostile(0, OP_CMD, 4);		 /* no length */
	test_hostile(0, 104 | OP_CMD, 4);	 /* no room for an answer */
	test_hostile(0, 0xfffffff8 | OP_CMD, 4); /* longer than the ring */
	test_hostile(V2_IOV_COUNT, 100, 4);	 /* more parts than the entry has room for */
	test_hostile(V2_IOV_COUNT, 0xffffffff, 4);
	test_hostile(V2_CDB, end, 8); /* the CDB beyond the region */
	test_hostile(V2_CDB, 0, 8);   /* in the mailbox */
	test_hostile(V2_CDB, UINT64_MAX, 8);
	test_hostile(V2_IOV, end + 1, 8);	    /* data beyond the region */
	test_hostile(V2_IOV, MODEL_RING_OFFSET, 8); /* data in the ring */
	test_hostile(V2_IOV + 8, 4097, 8);	    /* longer than what is left */
	test_hostile(V2_IOV + 8, UINT64_MAX, 8);
	test_hostile(V2_IOV + 16, UINT64_MAX - 100, 8);
	test_hostile_mailbox(4, 8);	     /* the ring over the mailbox */
	test_hostile_mailbox(4, 0xfffffff8); /* beyond the region */
	test_hostile_mailbox(8, 0);	     /* of no size */
	test_hostile_mailbox(8, 0xfffffff8); /* larger than the region */
	test_hostile_mailbox(12, ODD_RING);  /* the head outside */
	test_hostile_mailbox(12, 4);	     /* not aligned */
	test_hostile_mailbox(64, ODD_RING);  /* the tail outside */
}

static void test_commands_are_found_again(void)
{
	struct model *model = model_make(2, BOTH, ODD_RING, 4096);
	uint8_t compare[TCMU_CDB] = {0x89};

	CHECK(model_post(model, cdb, 1, 512) && model_post(model, compare, 1, 512));
	CHECK(tcmu_ring_open(&ring, model->region, model->size, NULL) == 0);
	CHECK(tcmu_ring_has(&ring, 2, 0x89) && !tcmu_ring_has(&ring, 1, 0x89));
	CHECK(!tcmu_ring_has(&ring, 3, 0x89));
	model_free(model);
}

int main(void)
{
	test_versions();
	test_fields(1);
	test_fields(2);
	for (unsigned seeded = 1; seeded <= 4; seeded++) {
		test_random(1, 0, NULL, seeded);
		test_random(2, BOTH, NULL, seeded);
		test_random(2, BOTH, &note, seeded);
	}
	test_out_of_order_is_answered_at_once();
	for (unsigned step = 0; step <= 7; step++)
		test_death(step);
	test_other_entries();
	test_a_short_read_is_told();
	test_hostility();
	test_commands_are_found_again();
	return 0;
}

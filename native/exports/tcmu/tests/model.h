/* The kernel's side of the TCMU ring in ordinary memory, as target_core_user.c of Linux 6.18 does it: commands
 * are posted with padding at the ring's end, answers are collected from where it left off to the tail. */
#ifndef SEALSVC_TCMU_MODEL_H
#define SEALSVC_TCMU_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "../layout.h"
#include "../ring.h"

#define MODEL_RING_OFFSET 128
#define MODEL_IDS 65536

struct model {
	char *region;
	size_t size;
	const struct tcmu_layout *layout;
	uint32_t ring_size, cleaned;
	uint16_t next_id;
	size_t data_at;		    /* where in the data area the next command's parts begin */
	int outstanding[MODEL_IDS]; /* 1: posted; 2: answered */
	uint8_t status[MODEL_IDS];
	unsigned posted, answered;
	int broken; /* an answer to nothing, or a second one */
};

static inline struct tcmu_mailbox_view *model_box(const struct model *model)
{
	return (struct tcmu_mailbox_view *)model->region;
}

static inline struct model *model_make(unsigned version, unsigned flags, uint32_t ring_size,
				       size_t data_size)
{
	struct model *model = calloc(1, sizeof(*model));

	model->ring_size = ring_size;
	model->size = MODEL_RING_OFFSET + ring_size + data_size;
	model->region = calloc(1, model->size);
	model->layout = &tcmu_layouts[version - 1];
	*model_box(model) = (struct tcmu_mailbox_view){.version = (uint16_t)version,
						       .flags = (uint16_t)flags,
						       .ring_offset = MODEL_RING_OFFSET,
						       .ring_size = ring_size};
	return model;
}

static inline void model_free(struct model *model)
{
	free(model->region);
	free(model);
}

static inline char *model_entry(const struct model *model, uint32_t at)
{
	return model->region + MODEL_RING_OFFSET + at;
}

static inline void model_put(char *at, uint64_t value, size_t bytes)
{
	memcpy(at, &value, bytes);
}

static inline uint32_t model_space(const struct model *model)
{
	uint32_t head = model_box(model)->head, used;

	used = (head + model->ring_size - model->cleaned) % model->ring_size;
	return model->ring_size - used - 8;
}

/* Room for `length` contiguous bytes at the head, padding where it takes some; NULL: no room. */
static inline char *model_room(struct model *model, uint32_t length)
{
	struct tcmu_mailbox_view *box = model_box(model);
	uint32_t to_end = model->ring_size - box->head;

	if (model_space(model) < length + (to_end < length ? to_end : 0))
		return NULL;
	if (to_end < length) {
		model_put(model_entry(model, box->head), to_end | OP_PAD, 4);
		__atomic_store_n(&box->head, 0, __ATOMIC_RELEASE);
	}
	return model_entry(model, box->head);
}

static inline void model_advance(struct model *model, uint32_t length)
{
	struct tcmu_mailbox_view *box = model_box(model);

	__atomic_store_n(&box->head, (box->head + length) % model->ring_size, __ATOMIC_RELEASE);
}

/* An entry of any operation; its header alone is filled in. */
static inline char *model_post_op(struct model *model, unsigned op, uint32_t length)
{
	char *entry = model_room(model, length);

	if (!entry)
		return NULL;
	memset(entry, 0, length);
	model_put(entry, length | op, 4);
	model_advance(model, length);
	return entry;
}

/* A command with `parts` of `bytes` each in the data area. Its entry, or NULL: no room. */
static inline char *model_post(struct model *model, const uint8_t *cdb, unsigned parts,
			       size_t bytes)
{
	const struct tcmu_layout *layout = model->layout;
	uint32_t base = layout->iov + parts * 16, length;
	char *entry;

	if (base < layout->smallest)
		base = layout->smallest;
	length = (base + TCMU_CDB + 7) & ~7u;
	entry = model_room(model, length);
	if (!entry)
		return NULL;
	memset(entry, 0, length);
	model_put(entry, length | OP_CMD, 4);
	do
		model->next_id++;
	while (!model->next_id || model->outstanding[model->next_id] == 1);
	model->outstanding[model->next_id] = 1;
	model->posted++;
	model_put(entry + layout->id, model->next_id, 2);
	model_put(entry + layout->iov_count, parts, 4);
	model_put(entry + layout->cdb, (uint64_t)(entry + base - model->region), 8);
	for (unsigned i = 0; i < parts; i++) {
		model_put(entry + layout->iov + i * 16,
			  MODEL_RING_OFFSET + model->ring_size + model->data_at + i * bytes, 8);
		model_put(entry + layout->iov + i * 16 + 8, bytes, 8);
	}
	memcpy(entry + base, cdb, TCMU_CDB);
	model_advance(model, length);
	return entry;
}

/* What the kernel does at the four bytes that are written. */
static inline void model_collect(struct model *model)
{
	while (model->cleaned != __atomic_load_n(&model_box(model)->tail, __ATOMIC_ACQUIRE)) {
		char *entry = model_entry(model, model->cleaned);
		uint32_t word;
		uint16_t id;

		memcpy(&word, entry, 4);
		memcpy(&id, entry + model->layout->id, 2);
		if ((word & OP_MASK) == OP_CMD) {
			model->broken |= model->outstanding[id] != 1;
			model->outstanding[id] = 2;
			model->status[id] = (uint8_t)entry[model->layout->status];
			model->answered++;
		}
		model->cleaned = (model->cleaned + (word & ~(uint32_t)OP_MASK)) % model->ring_size;
	}
}

#endif

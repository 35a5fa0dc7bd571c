/* The commands, one function each. */
#include <errno.h>
#include <string.h>

#include "internal.h"

int ring_carry_out(struct seal_client *client, struct seal_command *command)
{
	int64_t place;
	int error = client_check(client);

	if (error)
		return error;
	place = ring_put(client, command, ENTRY_WAITED);
	if (place < 0)
		return (int)place;
	error = ring_kick(client);
	if (!error)
		error = ring_wait(client, (uint32_t)place, command);
	return error ? error : command->status;
}

static int about(struct seal_client *client, struct seal *seal, struct seal_command *command)
{
	int error;

	command->slot = seal->number;
	command->word = seal->word;
	error = ring_carry_out(client, command);
	/* The word of a seal that is over would make it look valid. */
	if (!error && seal_word_live(command->word))
		seal->word = command->word;
	return error;
}

static void describe(const struct seal_client *client, struct seal *seal, uint32_t number,
		     uint64_t word)
{
	const struct seal_slot *slot = &client->slots[number];

	*seal = (struct seal){slot, word, slot->offset, slot->length, number, slot->file};
}

int seal_grant(struct seal_client *client, int file, uint64_t offset, uint64_t length,
	       enum seal_iomode iomode, struct seal *seal)
{
	struct seal_command command = {
		.op = SEAL_CMD_GRANT,
		.file = (uint32_t)file,
		.offset = offset,
		.length = length,
		.iomode = iomode,
	};
	int error = ring_carry_out(client, &command);

	if (error)
		return error;
	if (command.slot >= client->slot_count)
		return -EPROTO;
	describe(client, seal, command.slot, command.word);
	return 0;
}

int seal_return(struct seal_client *client, struct seal *seal)
{
	struct seal_command command = {.op = SEAL_CMD_RETURN};

	return about(client, seal, &command);
}

int seal_return_part(struct seal_client *client, struct seal *seal, uint64_t offset,
		     uint64_t length)
{
	struct seal_command command = {.op = SEAL_CMD_SHRINK, .offset = offset, .length = length};
	int error = about(client, seal, &command);

	if (!error && seal_valid(seal))
		describe(client, seal, seal->number, seal->word);
	return error;
}

int seal_mapped(struct seal_client *client, struct seal *seal, const void *address)
{
	struct seal_command command = {.op = SEAL_CMD_MAPPED,
				       .offset = (uint64_t)(uintptr_t)address};

	return about(client, seal, &command);
}

int seal_renew(struct seal_client *client, struct seal *seal, uint64_t ttl)
{
	struct seal_command command = {.op = SEAL_CMD_RENEW, .ttl = ttl};

	return about(client, seal, &command);
}

int seal_downgrade(struct seal_client *client, struct seal *seal)
{
	struct seal_command command = {.op = SEAL_CMD_DOWNGRADE};

	return about(client, seal, &command);
}

int seal_progress(struct seal_client *client, struct seal *seal)
{
	struct seal_command command = {.op = SEAL_CMD_PROGRESS};

	return about(client, seal, &command);
}

int seal_refresh(struct seal_client *client, struct seal *seal)
{
	uint64_t word = __atomic_load_n(&seal->slot->word, __ATOMIC_ACQUIRE);
	int error = client_check(client);

	if (error)
		return error;
	if (seal_word_generation(word) != seal_word_generation(seal->word) || !seal_word_live(word))
		return -ENOENT;
	describe(client, seal, seal->number, word);
	return 0;
}

/* One piece of a longer answer: how many extents were copied. */
static int extents_piece(struct seal_client *client, int file, uint64_t offset, uint64_t length,
			 struct seal_map_extent *out, uint32_t room)
{
	const uint32_t size = sizeof(struct seal_map_extent);
	uint32_t fit = client->data_size / size;
	struct seal_command command = {
		.op = SEAL_CMD_EXTENTS,
		.file = (uint32_t)file,
		.offset = offset,
		.length = length,
		.data_length = (room < fit ? room : fit) * size,
	};
	int error = ring_carry_out(client, &command);
	uint32_t count = command.count;

	if (error == -ENOBUFS)
		count = command.data_length / size;
	else if (error)
		return error;
	if (count > command.data_length / size)
		return -EPROTO;
	memcpy(out, client->data, count * size);
	return (int)count;
}

int seal_extents(struct seal_client *client, int file, uint64_t offset, uint64_t length,
		 struct seal_map_extent *out, uint32_t room)
{
	uint64_t end = offset + length;
	uint32_t total = 0;

	if (end < offset || client->data_size < sizeof(*out))
		return -EINVAL;
	while (total < room && offset < end) {
		int count = extents_piece(client, file, offset, end - offset, out + total,
					  room - total);

		if (count < 0)
			return count;
		if (count == 0)
			break;
		total += (uint32_t)count;
		offset = out[total - 1].logical + out[total - 1].length;
	}
	return (int)total;
}

int64_t seal_copy_bytes(struct seal_client *client, int file, uint64_t offset, int to,
			uint64_t to_offset, uint64_t length)
{
	struct seal_command command = {
		.op = SEAL_CMD_COPY_RANGE,
		.file = (uint32_t)file,
		.offset = offset,
		.length = length,
		.slot = (uint32_t)to,
		.cookie = to_offset,
	};
	int error = ring_carry_out(client, &command);

	if (error)
		return error;
	return command.word > length ? -EPROTO : (int64_t)command.word;
}

int64_t seal_submit(struct seal_client *client, const struct seal_command *command)
{
	int64_t place;
	int error = client_check(client);

	if (error)
		return error;
	place = ring_put(client, command, 0);
	return place < 0 ? place : (int64_t)client->next_id;
}

int seal_flush(struct seal_client *client)
{
	int error = client_check(client);

	return error ? error : ring_kick(client);
}

void seal_take(const struct seal_client *client, const struct seal_completion *done,
	       struct seal *seal)
{
	if (done->number < client->slot_count)
		describe(client, seal, done->number, done->word);
}

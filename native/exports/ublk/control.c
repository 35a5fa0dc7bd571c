#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ublk.h"
#include "uring.h"

#define CONTROL "/dev/ublk-control"
#define NO_DEVICE UINT32_MAX
#define QUICK_MS 10000 /* commands that wait for nobody but the kernel's own locks */

struct ublk_control {
	int fd;
	struct uring ring;
};

int ublk_control_open(struct ublk_control **control)
{
	struct ublk_control *made = calloc(1, sizeof(*made));
	int error;

	if (!made)
		return -ENOMEM;
	made->fd = open(CONTROL, O_RDWR | O_CLOEXEC);
	error = made->fd < 0 ? -errno : uring_open(&made->ring, 64, 1024);
	if (error < 0) {
		if (made->fd >= 0)
			close(made->fd);
		free(made);
		return error;
	}
	*control = made;
	return 0;
}

void ublk_control_close(struct ublk_control *control)
{
	uring_close(&control->ring);
	close(control->fd);
	free(control);
}

int ublk_control_fd(const struct ublk_control *control)
{
	return control->ring.fd;
}

int ublk_control_reap(struct ublk_control *control)
{
	struct io_uring_cqe completion;
	int ended = 0;

	for (; uring_next(&control->ring, &completion); ended++) {
		struct ublk_command *command =
			(struct ublk_command *)(uintptr_t)completion.user_data;

		command->result = completion.res;
		command->ended = 1;
	}
	return ended;
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int ublk_wait(struct ublk_control *control, const struct ublk_command *command, int milliseconds)
{
	long until = now_ms() + milliseconds;

	for (;;) {
		long left = milliseconds < 0 ? -1 : until - now_ms();
		int error;

		ublk_control_reap(control);
		if (command->ended)
			return command->result;
		if (milliseconds >= 0 && left <= 0)
			return -ETIMEDOUT;
		error = uring_enter(&control->ring, 1, (int)left);
		if (error < 0 && error != -ETIME && error != -EINTR)
			return error;
	}
}

/* The kernel carries every control command out in a worker thread of its own (ublk_ctrl_uring_cmd answers
 * EAGAIN to IO_URING_F_NONBLOCK), so this never waits. */
static int begin(struct ublk_control *control, uint32_t op, struct ublksrv_ctrl_cmd command,
		 struct ublk_command *state)
{
	struct io_uring_sqe *entry = uring_entry(&control->ring);

	if (!entry)
		return -EAGAIN;
	*state = (struct ublk_command){0};
	entry->opcode = IORING_OP_URING_CMD;
	entry->fd = control->fd;
	entry->cmd_op = op;
	entry->user_data = (uintptr_t)state;
	command.queue_id = (uint16_t)-1;
	memcpy(entry->cmd, &command, sizeof(command));
	return uring_enter(&control->ring, 0, 0);
}

/* For commands that end by themselves. The state is on the heap: after a time-out it is the kernel's. */
static int carry_out(struct ublk_control *control, uint32_t op, struct ublksrv_ctrl_cmd command,
		     int milliseconds)
{
	struct ublk_command *state = malloc(sizeof(*state));
	int result;

	if (!state)
		return -ENOMEM;
	result = begin(control, op, command, state);
	if (result < 0) {
		free(state);
		return result;
	}
	result = ublk_wait(control, state, milliseconds);
	if (state->ended)
		free(state);
	return result;
}

int ublk_features(struct ublk_control *control, uint64_t *features)
{
	struct ublksrv_ctrl_cmd command = {
		.dev_id = NO_DEVICE, .addr = (uintptr_t)features, .len = sizeof(*features)};

	return carry_out(control, UBLK_U_CMD_GET_FEATURES, command, QUICK_MS);
}

int ublk_info(struct ublk_control *control, uint32_t id, struct ublksrv_ctrl_dev_info *info)
{
	struct ublksrv_ctrl_cmd command = {
		.dev_id = id, .addr = (uintptr_t)info, .len = sizeof(*info)};

	return carry_out(control, UBLK_U_CMD_GET_DEV_INFO, command, QUICK_MS);
}

static int open_device(struct ublk_device *device)
{
	char path[32];

	snprintf(path, sizeof(path), "/dev/ublkc%u", device->info.dev_id);
	/* Where udev makes the node, or sets its owner, it may come a moment later. */
	for (int tries = 0; tries < 100; tries++) {
		device->fd = open(path, O_RDWR | O_CLOEXEC);
		if (device->fd >= 0)
			return 0;
		if (errno != ENOENT)
			break;
		poll(NULL, 0, 10);
	}
	return -errno;
}

static unsigned shift_of(unsigned power)
{
	return (unsigned)__builtin_ctz(power);
}

static void set_params(struct ublk_params *params, const struct ublk_config *config,
		       unsigned max_bytes)
{
	unsigned physical = config->physical_block_size ?: config->block_size;

	*params = (struct ublk_params){
		.len = sizeof(*params),
		.types = UBLK_PARAM_TYPE_BASIC,
		.basic =
			{
				.attrs = (config->read_only ? UBLK_ATTR_READ_ONLY : 0) |
					 (config->write_cache
						  ? UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA
						  : 0),
				.logical_bs_shift = (uint8_t)shift_of(config->block_size),
				.physical_bs_shift = (uint8_t)shift_of(physical),
				.io_opt_shift = (uint8_t)shift_of(physical),
				.io_min_shift = (uint8_t)shift_of(physical),
				.max_sectors = max_bytes / 512,
				.dev_sectors = config->size / 512,
			},
	};
	if (config->discard_granularity || config->max_write_zeroes_bytes) {
		params->types |= UBLK_PARAM_TYPE_DISCARD;
		params->discard = (struct ublk_param_discard){
			/* Wanted even where only zeroes are written (ublk_validate_params). */
			.discard_granularity = config->discard_granularity ?: config->block_size,
			.max_discard_sectors =
				config->discard_granularity ? config->max_discard_bytes / 512 : 0,
			.max_write_zeroes_sectors = config->max_write_zeroes_bytes / 512,
			.max_discard_segments = 1,
		};
	}
}

static int is_power(unsigned number)
{
	return number && !(number & (number - 1));
}

int ublk_add(struct ublk_control *control, const struct ublk_config *config,
	     struct ublk_device *device, int milliseconds)
{
	struct ublksrv_ctrl_cmd command = {.dev_id = (uint32_t)config->id,
					   .addr = (uintptr_t)&device->info,
					   .len = sizeof(device->info)};
	int error;

	*device = (struct ublk_device){.fd = -1};
	if (!is_power(config->block_size) || config->size % config->block_size ||
	    (config->physical_block_size && !is_power(config->physical_block_size)))
		return -EINVAL;
	device->info = (struct ublksrv_ctrl_dev_info){
		.nr_hw_queues = (uint16_t)config->queues,
		.queue_depth = (uint16_t)config->depth,
		.max_io_buf_bytes = config->max_bytes,
		.dev_id = (uint32_t)config->id,
		.flags = config->flags | 1ULL << 6, /* UBLK_F_CMD_IOCTL_ENCODE */
	};
	error = carry_out(control, UBLK_U_CMD_ADD_DEV, command, milliseconds);
	if (error < 0)
		return error;
	set_params(&device->params, config, device->info.max_io_buf_bytes);
	command = (struct ublksrv_ctrl_cmd){.dev_id = device->info.dev_id,
					    .addr = (uintptr_t)&device->params,
					    .len = sizeof(device->params)};
	error = carry_out(control, UBLK_U_CMD_SET_PARAMS, command, QUICK_MS);
	if (error >= 0)
		error = open_device(device);
	if (error < 0) {
		command = (struct ublksrv_ctrl_cmd){.dev_id = device->info.dev_id};
		carry_out(control, UBLK_U_CMD_DEL_DEV, command, QUICK_MS);
	}
	return error < 0 ? error : 0;
}

int ublk_start(struct ublk_control *control, struct ublk_device *device,
	       struct ublk_command *command)
{
	return begin(control, UBLK_U_CMD_START_DEV,
		     (struct ublksrv_ctrl_cmd){.dev_id = device->info.dev_id,
					       .data = {(uint64_t)getpid()}},
		     command);
}

int ublk_stop(struct ublk_control *control, uint32_t id, struct ublk_command *command)
{
	return begin(control, UBLK_U_CMD_STOP_DEV, (struct ublksrv_ctrl_cmd){.dev_id = id},
		     command);
}

int ublk_delete(struct ublk_control *control, uint32_t id, struct ublk_command *command)
{
	return begin(control, UBLK_U_CMD_DEL_DEV, (struct ublksrv_ctrl_cmd){.dev_id = id}, command);
}

int ublk_quiesce(struct ublk_control *control, uint32_t id, unsigned milliseconds,
		 struct ublk_command *command)
{
	return begin(control, UBLK_U_CMD_QUIESCE_DEV,
		     (struct ublksrv_ctrl_cmd){.dev_id = id, .data = {milliseconds}}, command);
}

int ublk_resize(struct ublk_control *control, uint32_t id, uint64_t size,
		struct ublk_command *command)
{
	return begin(control, UBLK_U_CMD_UPDATE_SIZE,
		     (struct ublksrv_ctrl_cmd){.dev_id = id, .data = {size / 512}}, command);
}

int ublk_recover(struct ublk_control *control, uint32_t id, struct ublk_device *device)
{
	struct ublksrv_ctrl_cmd command = {.dev_id = id};
	int error;

	*device = (struct ublk_device){.fd = -1};
	error = ublk_info(control, id, &device->info);
	if (error >= 0)
		error = carry_out(control, UBLK_U_CMD_START_USER_RECOVERY, command, QUICK_MS);
	return error < 0 ? error : open_device(device);
}

int ublk_recovered(struct ublk_control *control, struct ublk_device *device,
		   struct ublk_command *command)
{
	return begin(control, UBLK_U_CMD_END_USER_RECOVERY,
		     (struct ublksrv_ctrl_cmd){.dev_id = device->info.dev_id,
					       .data = {(uint64_t)getpid()}},
		     command);
}

void ublk_close(struct ublk_device *device)
{
	if (device->fd >= 0)
		close(device->fd);
	device->fd = -1;
}

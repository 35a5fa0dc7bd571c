/* Operations from a seed. The n-th of a worker is made from a SplitMix64 stream of its own (Steele, Lea,
 * Flood 2014), which starts at mix(mix(seed + worker * GOLDEN) + number), so that each can be made
 * without those before it. */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "attack.h"

#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)
#define ELEMENTS(array) (sizeof(array) / sizeof((array)[0]))

const char *const kind_names[KIND_COUNT] = {
#define KIND(name, weight, flags) #name,
	KINDS(KIND)
#undef KIND
};
static const unsigned weights[KIND_COUNT] = {
#define KIND(name, weight, flags) weight,
	KINDS(KIND)
#undef KIND
};
const unsigned kind_flags[KIND_COUNT] = {
#define KIND(name, weight, flags) flags,
	KINDS(KIND)
#undef KIND
};

static uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

uint64_t prng_next(uint64_t *state)
{
	return mix(*state += GOLDEN);
}

static uint64_t below(uint64_t *state, uint64_t limit)
{
	return prng_next(state) % limit;
}

static const uint32_t fallocate_modes[] = {
	0, 1, 2, 3, 3, 3, 8, 0x10, 0x11, 0x20, 0x40, 0x41, 0x80, 0x81, 4, 0x13, 0x48,
};
static const uint32_t advices[] = {
	MADV_REMOVE,
	MADV_REMOVE,
	MADV_REMOVE,
	MADV_DONTNEED,
	8 /* FREE */,
	20 /* COLD */,
	21 /* PAGEOUT */,
	22 /* POPULATE_READ */,
	23 /* POPULATE_WRITE */,
	24,
	25 /* COLLAPSE */,
	26,
	27,
	0,
	3 /* WILLNEED */,
	102,
};
static const uint32_t write_flags[] = {
	0,    2 /* DSYNC */, 8 /* NOWAIT */, 0x10 /* APPEND */,	   0x20, 0x40 /* ATOMIC */,
	0x40, 0x40,	     0x42,	     0x80 /* DONTCACHE */, 0xc0, 0x100,
};
static const uint32_t open_flags[] = {
	O_RDONLY,
	O_RDWR,
	O_TRUNC,
	O_TRUNC | O_RDWR,
	O_TRUNC | O_WRONLY,
	O_RDWR | O_DIRECT,
	O_RDWR | O_TRUNC | O_CREAT,
	O_RDWR | O_APPEND,
	O_PATH,
	O_RDWR | O_DSYNC,
	3,
	3 | O_TRUNC,
	O_RDWR | O_NONBLOCK | O_TRUNC,
};

static uint64_t pick_offset(uint64_t *state, const struct target *target)
{
	static const int64_t edges[] = {-131072, -4096, -512, -1, 0, 1, 512, 4096};
	uint64_t around;

	switch (below(state, 10)) {
	case 0:
	case 1:
		around = target->sealed ? target->start : 0;
		return around + (uint64_t)edges[below(state, ELEMENTS(edges))];
	case 2:
	case 3:
		around = target->sealed ? target->end : FILE_BYTES;
		return around + (uint64_t)edges[below(state, ELEMENTS(edges))];
	case 4:
		return below(state, FILE_BYTES + 65536);
	case 5:
		return below(state, 20) ? FILE_BYTES : UINT64_C(1) << below(state, 63);
	default:
		return below(state, FILE_BYTES / BLOCK) * BLOCK;
	}
}

static uint64_t pick_length(uint64_t *state)
{
	switch (below(state, 12)) {
	case 0:
		return 1 + below(state, BLOCK);
	case 1:
		return below(state, 40) ? 512 : UINT64_C(1) << below(state, 64);
	case 2:
		return 0;
	case 3:
		return BUFFER;
	case 4:
	case 5:
		return 65536;
	case 6:
		return 131072;
	default:
		return (1 + below(state, 16)) * BLOCK;
	}
}

static uint64_t pick_argument(uint64_t *state, unsigned kind)
{
	switch (kind) {
	case KIND_fallocate:
		return fallocate_modes[below(state, ELEMENTS(fallocate_modes))];
	case KIND_madvise:
	case KIND_process_madvise:
		return advices[below(state, ELEMENTS(advices))];
	case KIND_write_flags:
	case KIND_aio:
		return write_flags[below(state, ELEMENTS(write_flags))];
	case KIND_open_flags:
	case KIND_openat2:
		return open_flags[below(state, ELEMENTS(open_flags))];
	case KIND_uring:
	case KIND_uring_linked:
	case KIND_uring_poll:
	case KIND_uring_worker: /* whatever the opcode takes of these */
		if (below(state, 2))
			return fallocate_modes[below(state, ELEMENTS(fallocate_modes))];
		return write_flags[below(state, ELEMENTS(write_flags))];
	}
	return prng_next(state);
}

static int possible(const struct control *control, unsigned worker, unsigned kind)
{
	unsigned flags = kind_flags[kind];

	if (control->without >> kind & 1)
		return 0;
	if ((flags & ROOT) && !(control->privileged >> worker & 1))
		return 0;
	return !(flags & (XFS | EXT4)) || (flags & control->fs);
}

static unsigned pick_kind(const struct control *control, unsigned worker, uint64_t *state)
{
	unsigned sum = 0, chosen;

	for (unsigned kind = 0; kind < KIND_COUNT; kind++)
		sum += possible(control, worker, kind) ? weights[kind] : 0;
	chosen = (unsigned)below(state, sum);
	for (unsigned kind = 0;; kind++) {
		unsigned weight = possible(control, worker, kind) ? weights[kind] : 0;

		if (chosen < weight)
			return kind;
		chosen -= weight;
	}
}

/* Where a seal was granted with this operation's risk, it goes where there is none. */
static unsigned pick_file(const struct control *control, uint64_t *state, unsigned flags)
{
	unsigned file = (unsigned)below(state, FILES);

	while ((flags & control->risks & RISKS) && control->targets[file].sealed &&
	       !control->targets[file].exclusive)
		file = (file + 1) % FILES;
	return file;
}

void generate(const struct control *control, unsigned worker, uint64_t number, struct op *out)
{
	uint64_t state = mix(mix(control->seed + worker * GOLDEN) + number);
	unsigned flags;

	memset(out, 0, sizeof(*out));
	out->kind = (uint16_t)pick_kind(control, worker, &state);
	flags = kind_flags[out->kind];
	out->file = (uint8_t)pick_file(control, &state, flags);
	out->other = (uint8_t)pick_file(control, &state, flags);
	out->how = (uint8_t)(below(&state, 2) ? HOW_HELD : below(&state, HOW_COUNT));
	out->sub = (uint8_t)prng_next(&state);
	out->flags = (uint16_t)prng_next(&state);
	out->high = below(&state, 3) ? 0 : (uint32_t)prng_next(&state);
	out->offset = pick_offset(&state, &control->targets[out->file]);
	out->length = pick_length(&state);
	out->argument = pick_argument(&state, out->kind);
	out->second = pick_offset(&state, &control->targets[out->other]);
}

void op_print(const struct op *op, unsigned worker)
{
	const unsigned char *byte = (const unsigned char *)op;

	printf("%u ", worker);
	for (unsigned i = 0; i < sizeof(*op); i++)
		printf("%02x", byte[i]);
	printf(" # %s file=%u other=%u how=%u sub=%u flags=%#x high=%#x offset=%" PRIu64
	       " length=%" PRIu64 " argument=%#" PRIx64 " second=%" PRIu64 "\n",
	       op->kind < KIND_COUNT ? kind_names[op->kind] : "?", op->file, op->other, op->how,
	       op->sub, op->flags, op->high, op->offset, op->length, op->argument, op->second);
}

int op_parse(const char *line, unsigned *worker, struct op *out)
{
	unsigned char *byte = (unsigned char *)out;
	unsigned value;
	int used;

	if (sscanf(line, "%u %n", worker, &used) != 1 || *worker >= WORKERS)
		return -1;
	line += used;
	for (unsigned i = 0; i < sizeof(*out); i++) {
		if (sscanf(line + 2 * i, "%2x", &value) != 1)
			return -1;
		byte[i] = (unsigned char)value;
	}
	return out->kind < KIND_COUNT && out->file < FILES && out->other < FILES ? 0 : -1;
}

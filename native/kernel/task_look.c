#include "sealsvc/task_look.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void seal_task_looker_init(struct seal_task_looker *looker, unsigned tasks)
{
	memset(looker, 0, sizeof(*looker));
	looker->count = tasks;
	for (unsigned i = 0; i < 64; i++)
		looker->slots[i].syscall = looker->slots[i].stack = -1;
}

static void forget(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void seal_task_looker_close(struct seal_task_looker *looker)
{
	for (unsigned i = 0; i < 64; i++) {
		forget(&looker->slots[i].syscall);
		forget(&looker->slots[i].stack);
	}
}

/* An open file of /proc names the task it was opened for, never a later one with its number: reading
 * it then fails with ESRCH. */
static ssize_t read_kept(int *fd, const char *path, char *text, size_t size)
{
	ssize_t n;

	if (*fd >= 0) {
		n = pread(*fd, text, size - 1, 0);
		if (n >= 0)
			return n;
		forget(fd);
	}
	*fd = open(path, O_RDONLY | O_CLOEXEC);
	if (*fd < 0)
		return -errno;
	n = pread(*fd, text, size - 1, 0);
	return n < 0 ? -errno : n;
}

/* The descriptors that are kept for a task; those of another that had the place are closed. */
static struct seal_task_slot *slot_of(struct seal_task_looker *looker, int32_t tid)
{
	struct seal_task_slot *slot = &looker->slots[(uint32_t)tid % looker->count];

	if (slot->tid != tid) {
		forget(&slot->syscall);
		forget(&slot->stack);
		slot->tid = tid;
	}
	return slot;
}

void seal_syscall_read(struct seal_task_looker *looker, int32_t tid, struct seal_syscall *out)
{
	char line[256], path[40], *p = line;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	n = read_kept(&slot_of(looker, tid)->syscall, path, line, sizeof(line));
	memset(out, 0, sizeof(*out));
	out->nr = -1;
	if (n <= 0) {
		out->state = SEAL_TASK_GONE;
		return;
	}
	line[n] = '\0';
	if (line[0] == 'r') { /* "running" */
		out->state = SEAL_TASK_RUNNING;
		return;
	}
	out->state = SEAL_TASK_BLOCKED;
	out->nr = strtoll(p, &p, 10);
	if (out->nr < 0) /* "-1 SP PC": blocked, but in no system call */
		return;
	for (int i = 0; i < 6; i++)
		out->args[i] = strtoull(p, &p, 16);
	out->sp = strtoull(p, &p, 16);
	out->pc = strtoull(p, &p, 16);
}

static int begins(const char *name, const char *with)
{
	return strncmp(name, with, strlen(with)) == 0;
}

/* A line is "[<0>] NAME+0xOFFSET/0xSIZE [MODULE]". Whoever traces a function puts a trampoline between
 * it and its caller. */
static void add_frame(struct seal_stack *out, char *line)
{
	char *name = strchr(line, ']');

	if (!name || name[1] != ' ')
		return;
	name += 2;
	name[strcspn(name, "+. \n")] = '\0';
	if (out->count < SEAL_STACK_FRAMES && !begins(name, "bpf_trampoline_"))
		out->frame[out->count++] = name;
}

void seal_stack_read(struct seal_task_looker *looker, int32_t tid, struct seal_stack *out)
{
	char path[40], *line, *end;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stack", tid);
	n = read_kept(&slot_of(looker, tid)->stack, path, out->text, sizeof(out->text));
	out->count = 0;
	out->state = SEAL_TASK_GONE;
	if (n < 0)
		return;
	out->state = n ? SEAL_TASK_BLOCKED : SEAL_TASK_RUNNING; /* the unwinder leaves it alone */
	out->text[n] = '\0';
	for (line = out->text; (end = strchr(line, '\n')); line = end + 1) {
		*end = '\0';
		add_frame(out, line);
	}
}

/* Functions between the entry of a system call and what it does: those that compilers did not inline
 * or end with a jump, in whatever version. None of them does anything else. */
static int is_entry(const char *name)
{
	static const char *const prefixes[] = {"__x64_sys_", "__se_sys_", "__do_sys_", "ksys_"};
	static const char *const names[] = {"x64_sys_call",   "do_sys_openat2",	  "do_sys_open",
					    "do_handle_open", "do_writev",	  "do_pwritev",
					    "do_vfs_ioctl",   "ioctl_preallocate"};

	for (unsigned i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++)
		if (begins(name, prefixes[i]))
			return 1;
	for (unsigned i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strcmp(name, names[i]) == 0)
			return 1;
	return 0;
}

int seal_stack_is_plain_call(const struct seal_stack *stack, unsigned from)
{
	while (from < stack->count && is_entry(stack->frame[from]))
		from++;
	return stack->count == from + 2 && strcmp(stack->frame[from], "do_syscall_64") == 0 &&
	       strcmp(stack->frame[from + 1], "entry_SYSCALL_64_after_hwframe") == 0;
}

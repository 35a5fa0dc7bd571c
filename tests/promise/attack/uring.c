/* io_uring by hand: rings, workers, links, timeouts, fixed files, SQPOLL. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <linux/time_types.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attack.h"

#define ENTRIES 16
#define OP_FTRUNCATE 55 /* since v6.9 */
#define WAIT_US 20000	/* for completions; what takes longer is held somewhere */

static unsigned *at(void *base, unsigned offset)
{
	return (unsigned *)((char *)base + offset);
}

void uring_close(struct uring *ring)
{
	if (!ring->sqes)
		return;
	munmap(ring->rings, ring->rings_size);
	munmap(ring->cq_ring, ring->cq_size);
	munmap(ring->sqes, ring->sqes_size);
	close(ring->fd);
	memset(ring, 0, sizeof(*ring));
}

int uring_open(struct uring *ring, unsigned flags)
{
	struct io_uring_params p = {.flags = flags, .sq_thread_idle = 1};

	memset(ring, 0, sizeof(*ring));
	ring->fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
	if (ring->fd < 0)
		return -errno;
	fcntl(ring->fd, F_SETFD, FD_CLOEXEC);
	ring->rings_size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	ring->cq_size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	ring->sqes_size = p.sq_entries * sizeof(struct io_uring_sqe);
	ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			   IORING_OFF_SQ_RING);
	ring->cq_ring = mmap(NULL, ring->cq_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			     IORING_OFF_CQ_RING);
	ring->sqes = mmap(NULL, ring->sqes_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			  IORING_OFF_SQES);
	if (ring->rings == MAP_FAILED || ring->cq_ring == MAP_FAILED || ring->sqes == MAP_FAILED)
		_exit(4);
	ring->sq_tail = at(ring->rings, p.sq_off.tail);
	ring->sq_array = at(ring->rings, p.sq_off.array);
	ring->sq_flags = at(ring->rings, p.sq_off.flags);
	ring->sq_mask = *at(ring->rings, p.sq_off.ring_mask);
	ring->cq_head = at(ring->cq_ring, p.cq_off.head);
	ring->cq_tail = at(ring->cq_ring, p.cq_off.tail);
	ring->cq_mask = *at(ring->cq_ring, p.cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)at(ring->cq_ring, p.cq_off.cqes);
	ring->sqpoll = flags & IORING_SETUP_SQPOLL;
	return 0;
}

static void push(struct uring *ring, const struct io_uring_sqe *sqe)
{
	unsigned tail = *ring->sq_tail, index = tail & ring->sq_mask;

	ring->sqes[index] = *sqe;
	ring->sq_array[index] = index;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
}

static long enter(const struct uring *ring, unsigned submit, unsigned wait)
{
	struct __kernel_timespec limit = {0, WAIT_US * 1000};
	struct io_uring_getevents_arg arg = {.ts = (uint64_t)(uintptr_t)&limit};
	unsigned flags = wait ? IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG : 0;

	if (ring->sqpoll)
		flags |= IORING_ENTER_SQ_WAKEUP;
	return syscall(SYS_io_uring_enter, ring->fd, submit, wait, flags, wait ? &arg : NULL,
		       sizeof(arg));
}

/* The result of the request `data`; what completes beside it is passed over. */
static long reap(struct uring *ring, uint64_t data)
{
	unsigned head = *ring->cq_head;
	long found = -ETIME;

	for (; head != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE); head++)
		if (ring->cqes[head & ring->cq_mask].user_data == data)
			found = ring->cqes[head & ring->cq_mask].res;
	__atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
	return found;
}

/* The request that the record asks for; `fd` is of its file. */
static void request(struct attacker *a, const struct op *op, int fd, struct io_uring_sqe *sqe)
{
	static const uint8_t opcodes[] = {
		IORING_OP_FALLOCATE, IORING_OP_FALLOCATE, OP_FTRUNCATE,	    IORING_OP_WRITE,
		IORING_OP_WRITE,     IORING_OP_READ,	  IORING_OP_OPENAT, IORING_OP_OPENAT2,
		IORING_OP_MADVISE,   IORING_OP_FADVISE,	  IORING_OP_FSYNC,  IORING_OP_SPLICE,
	};
	uint64_t length = op->length < BUFFER ? op->length : BUFFER;
	uint64_t offset = op->offset % (2 * FILE_BYTES);

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = opcodes[op->sub % sizeof(opcodes)];
	sqe->fd = fd;
	sqe->off = op->flags & 0x40 ? offset & ~(uint64_t)(BLOCK - 1) : offset;
	if (op->flags & 0x40)
		length = length < BLOCK ? BLOCK : length & ~(uint64_t)(BLOCK - 1);
	sqe->addr = (uint64_t)(uintptr_t)a->buffer;
	sqe->len = (unsigned)length;
	sqe->flags = op->flags & 1 ? IOSQE_ASYNC : 0;
	switch (sqe->opcode) {
	case IORING_OP_FALLOCATE:
		sqe->addr = length ? length : BLOCK;
		sqe->len = (unsigned)op->argument;
		break;
	case OP_FTRUNCATE:
		sqe->addr = sqe->len = 0;
		break;
	case IORING_OP_WRITE:
	case IORING_OP_READ:
		sqe->rw_flags = (int)(sqe->opcode == IORING_OP_READ ? 0 : op->argument & 0xff);
		break;
	case IORING_OP_OPENAT:
		sqe->fd = a->directory;
		strcpy(a->buffer, "f0");
		a->buffer[1] = (char)('0' + op->file);
		sqe->len = 0600;
		sqe->off = 0;
		sqe->open_flags = O_RDWR | O_CLOEXEC | (op->flags & 2 ? 0 : O_TRUNC);
		break;
	case IORING_OP_OPENAT2:
		sqe->fd = a->directory;
		strcpy(a->buffer, "f0");
		a->buffer[1] = (char)('0' + op->file);
		*(struct open_how *)(a->buffer + 64) = (struct open_how){
			.flags = O_RDWR | O_CLOEXEC | (op->flags & 2 ? 0 : (uint64_t)O_TRUNC)};
		sqe->off = (uint64_t)(uintptr_t)(a->buffer + 64);
		sqe->len = sizeof(struct open_how);
		break;
	case IORING_OP_MADVISE:
		offset = op->offset % FILE_BYTES & ~(uint64_t)(BLOCK - 1);
		sqe->fd = -1;
		sqe->addr = (uint64_t)(uintptr_t)target_map(a, op->file);
		if (sqe->addr == (uint64_t)(uintptr_t)MAP_FAILED)
			sqe->addr = (uint64_t)(uintptr_t)a->buffer;
		else
			sqe->addr += offset;
		sqe->off = 0;
		/* Not beyond the mapping: what lies behind it is ours. */
		sqe->len = (unsigned)(length < FILE_BYTES - offset ? length : FILE_BYTES - offset);
		sqe->fadvise_advice = op->flags & 2 ? 4 /* DONTNEED */ : 9 /* REMOVE */;
		break;
	case IORING_OP_FADVISE:
		sqe->fadvise_advice = op->flags % 6;
		sqe->addr = 0;
		break;
	case IORING_OP_SPLICE:
		sqe->splice_fd_in = a->held[op->other];
		sqe->splice_off_in = op->second % FILE_BYTES;
		break;
	}
}

static void close_what_opened(const struct io_uring_sqe *sqe, long result)
{
	if (result >= 0 && (sqe->opcode == IORING_OP_OPENAT || sqe->opcode == IORING_OP_OPENAT2))
		close((int)result);
}

/* One request, on the long-lived ring or one with a kernel thread that submits; by a fixed file at times. */
long do_uring(struct attacker *a, const struct op *op)
{
	int direct = (op->argument & 0x40) && op->sub % 12 >= 3 && op->sub % 12 <= 4;
	int fd = target_open(a, op, direct ? O_DIRECT : 0), fixed = 0;
	struct uring own = {0}, *ring = &a->ring;
	struct io_uring_sqe sqe;
	long done;

	if (fd < 0)
		return fd;
	if (op->flags % 64 == 4 && uring_open(&own, IORING_SETUP_SQPOLL) == 0)
		ring = &own;
	else if (op->flags % 64 == 5 && uring_open(&own, 0) == 0)
		ring = &own;
	request(a, op, fd, &sqe);
	sqe.user_data = (uint64_t)(uintptr_t)op + a->slot->next;
	if (ring == &own && sqe.fd == fd) {
		fixed = syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_FILES, &fd, 1) ==
			0;
		if (fixed) {
			sqe.fd = 0;
			sqe.flags |= IOSQE_FIXED_FILE;
		}
	}
	push(ring, &sqe);
	enter(ring, 1, 1);
	done = reap(ring, sqe.user_data);
	close_what_opened(&sqe, done);
	uring_close(&own);
	if (done == -ETIME) { /* the buffer and the descriptor may be in use still */
		uring_close(&a->ring);
		uring_open(&a->ring, 0);
	}
	target_close(a, op, fd);
	return done;
}

/* A chain: something that is free first, then the request. */
long do_uring_linked(struct attacker *a, const struct op *op)
{
	int fd = target_open(a, op, 0);
	struct io_uring_sqe first, sqe;
	struct __kernel_timespec soon = {0, 200000};
	long done;

	if (fd < 0)
		return fd;
	request(a, op, fd, &sqe);
	sqe.user_data = (uint64_t)(uintptr_t)op + a->slot->next;
	memset(&first, 0, sizeof(first));
	first.flags = op->flags & 4 ? IOSQE_IO_LINK : IOSQE_IO_HARDLINK;
	if (op->flags & 8) {
		first.opcode = IORING_OP_TIMEOUT;
		first.addr = (uint64_t)(uintptr_t)&soon;
		first.len = 1;
		first.timeout_flags = IORING_TIMEOUT_ETIME_SUCCESS;
	} else if (op->flags & 16) {
		first.opcode = IORING_OP_READ;
		first.fd = fd;
		first.addr = (uint64_t)(uintptr_t)(a->buffer + BLOCK);
		first.len = 512;
	} else {
		first.opcode = IORING_OP_NOP;
	}
	push(&a->ring, &first);
	push(&a->ring, &sqe);
	enter(&a->ring, 2, 2);
	done = reap(&a->ring, sqe.user_data);
	close_what_opened(&sqe, done);
	if (done == -ETIME) {
		uring_close(&a->ring);
		uring_open(&a->ring, 0);
	}
	target_close(a, op, fd);
	return done;
}

/* Completion by polling, which runs the request in the task work of whoever waits. */
long do_uring_poll(struct attacker *a, const struct op *op)
{
	struct uring ring;
	struct io_uring_sqe sqe;
	int fd;
	long done = uring_open(&ring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);

	if (done < 0)
		return done;
	fd = target_open(a, op, 0);
	if (fd >= 0) {
		request(a, op, fd, &sqe);
		sqe.flags |= IOSQE_IO_DRAIN;
		sqe.user_data = 1;
		push(&ring, &sqe);
		enter(&ring, 1, 1);
		done = reap(&ring, 1);
		close_what_opened(&sqe, done);
	} else {
		done = fd;
	}
	uring_close(&ring);
	target_close(a, op, fd);
	return done;
}

static void nothing(int number)
{
	(void)number;
}

/* In a new process: the request becomes due behind a timeout while its creator is in a harmless call.
 * What the kernel then does, in a worker or in task work, must not be taken for that call. */
static long in_harmless_call(struct attacker *a, const struct op *op)
{
	const struct itimerspec end = {.it_value.tv_nsec = 6000000};
	const struct itimerval alarm_at_end = {.it_value.tv_usec = 6000};
	const struct sigaction interrupted = {.sa_handler = nothing}; /* no SA_RESTART */
	struct __kernel_timespec soon = {0, 1500000};
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	int direct = (op->argument & 0x40) && op->sub % 12 >= 3 && op->sub % 12 <= 4;
	int fd = target_open(a, op, direct ? O_DIRECT : 0);
	struct io_uring_sqe first = {.opcode = IORING_OP_TIMEOUT, .len = 1, .flags = IOSQE_IO_LINK};
	struct io_uring_sqe sqe;
	struct uring ring;
	uint64_t count;

	if (fd < 0 || uring_open(&ring, 0) < 0)
		return -EBADF;
	request(a, op, fd, &sqe);
	sqe.user_data = 1;
	first.addr = (uint64_t)(uintptr_t)&soon;
	first.timeout_flags = IORING_TIMEOUT_ETIME_SUCCESS;
	push(&ring, &first);
	push(&ring, &sqe);
	enter(&ring, 2, 0);
	if (op->flags & 0x100) {
		sigaction(SIGALRM, &interrupted, NULL);
		setitimer(ITIMER_REAL, &alarm_at_end, NULL);
		close(openat(a->directory, "fifo", O_RDONLY | O_CLOEXEC));
	} else {
		timerfd_settime(timer, 0, &end, NULL);
		if (read(timer, &count, sizeof(count)) < 0)
			return -errno;
	}
	enter(&ring, 0, 1);
	return reap(&ring, 1);
}

long do_uring_worker(struct attacker *a, const struct op *op)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0) {
		long done;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		done = in_harmless_call(a, op);
		_exit(done < 0 ? (int)-done & 0xff : 0);
	}
	if (child < 0)
		return -errno;
	waitpid(child, &status, 0);
	return WIFEXITED(status) ? -(long)WEXITSTATUS(status) : -EINTR;
}

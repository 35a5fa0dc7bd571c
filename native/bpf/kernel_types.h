/* The few kernel structures that the programs read. Their offsets come from the BTF of the running
 * kernel (CO-RE), so that only names and types matter here; what is not read is left out. */
#ifndef SEAL_KERNEL_TYPES_H
#define SEAL_KERNEL_TYPES_H

#include <linux/types.h>

typedef long long loff_t;
typedef __u32 rwf_t;
typedef __u32 dev_t;
typedef unsigned long size_t;
typedef long ssize_t;
typedef _Bool bool;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

struct page {
	atomic_t _refcount;
};

struct super_block {
	dev_t s_dev;
};

struct rb_root {
	void *rb_node;
};

struct rb_root_cached {
	struct rb_root rb_root;
};

struct address_space {
	struct rb_root_cached i_mmap; /* the areas that map it */
};

struct inode {
	unsigned short i_mode;
	unsigned int i_flags;
	struct address_space *i_mapping;
	struct super_block *i_sb;
	unsigned long i_ino;
	dev_t i_rdev;
	loff_t i_size;
	__u8 i_blkbits;
	__u32 i_generation;
};

typedef struct {
	long counter;
} atomic_long_t;

typedef struct {
	atomic_long_t refcnt;
} file_ref_t;

struct file {
	unsigned int f_mode;
	unsigned int f_flags;
	struct inode *f_inode;
	const struct cred *f_cred;
	file_ref_t f_ref; /* since v6.13 */
};

/* Until v6.12. */
struct file___counted {
	atomic_long_t f_count;
};

struct dentry {
	struct inode *d_inode;
};

struct iattr {
	unsigned int ia_valid;
	loff_t ia_size;
};

struct kiocb {
	struct file *ki_filp;
	loff_t ki_pos;
};

struct iocb {
	rwf_t aio_rw_flags;
	__u64 aio_nbytes;
	__s64 aio_offset;
};

struct io_wq_work {
	unsigned int cancel_seq; /* any member: its place is asked for, not what it holds */
};

struct io_kiocb {
	struct file *file;
	__u8 opcode;
	struct io_wq_work work;
};

struct io_worker {
	struct io_wq_work *cur_work;
};

/* What io_uring keeps at the start of a struct io_kiocb for reads and writes. */
struct io_rw {
	struct kiocb kiocb;
	__u32 len;
	rwf_t flags;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	atomic_t count;
	struct fdtable *fdt;
};

struct thread_info {
	__u32 status; /* x86 */
};

/* x86 */
struct pt_regs {
	unsigned long bp, r10, r9, cx, dx, si, orig_ax;
};

struct task_struct {
	struct thread_info thread_info;
	unsigned int flags;
	void *worker_private;
	int tgid;
	struct task_struct *group_leader;
	__u64 start_boottime;
	struct files_struct *files;
	struct mm_struct *mm;
};

struct vm_area_struct {
	unsigned long vm_start, vm_end;
	unsigned long vm_pgoff;
	struct file *vm_file;
};

#pragma clang attribute pop

#endif

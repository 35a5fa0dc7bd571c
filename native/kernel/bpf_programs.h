/* The programs of native/bpf/seal.bpf.c, and what each needs of the kernel. */
#ifndef SEALSVC_BPF_PROGRAMS_H
#define SEALSVC_BPF_PROGRAMS_H

#include "sealsvc/bpf_layout.h"

struct bpf_program_need {
	const char *name;
	const char *function;	     /* that it is attached to, in the kernel's BTF */
	int parameters;		     /* that the function must have; 0: any number */
	const char *purpose;	     /* a function without which the program is needless; or 0 */
	enum seal_bpf_traced traced; /* the trace that it leaves; or 0 */
};

/* The order of attaching. What ends an operation comes before what begins it: an end without its
 * beginning does nothing, a beginning without its end would stay for ever. */
static const struct bpf_program_need bpf_program_needs[] = {
	{"setattr_by_idmap", "bpf_lsm_inode_setattr", 3, 0, 0},
	{"setattr_by_dentry", "bpf_lsm_inode_setattr", 2, 0, 0},
	{"file_open", "bpf_lsm_file_open", 0, 0, 0},
	{"ioctl_end", "__x64_sys_ioctl", 0, 0, 0},
	{"ioctl_compat_end", "__ia32_compat_sys_ioctl", 0, "__ia32_compat_sys_ioctl", 0},
	{"file_ioctl", "bpf_lsm_file_ioctl", 0, 0, 0},
	/* Before it came (v6.8 and stable releases) lsm/file_ioctl was asked for 32-bit callers too. */
	{"file_ioctl_compat", "bpf_lsm_file_ioctl_compat", 0, "bpf_lsm_file_ioctl_compat", 0},
	{"fallocate_end", "vfs_fallocate", 0, 0, 0},
	{"fallocate", "vfs_fallocate", 0, 0, SEAL_BPF_TRACED_FALLOCATE},
	{"copy_end", "vfs_copy_file_range", 0, 0, 0},
	{"copy", "vfs_copy_file_range", 0, 0, SEAL_BPF_TRACED_COPY},
	{"clone_end", "vfs_clone_file_range", 0, 0, 0},
	{"clone", "vfs_clone_file_range", 0, 0, SEAL_BPF_TRACED_CLONE},
	{"clone_inner_end", "do_clone_file_range", 0, "do_clone_file_range", 0},
	{"clone_inner", "do_clone_file_range", 0, "do_clone_file_range", SEAL_BPF_TRACED_CLONE},
	{"dedupe_end", "vfs_dedupe_file_range_one", 0, 0, 0},
	{"dedupe", "vfs_dedupe_file_range_one", 0, 0, SEAL_BPF_TRACED_DEDUPE},
	/* Not to be traced before v6.9; since v6.10 XFS exchanges extents through it. */
	{"remap_end", "remap_verify_area", 0, "remap_verify_area", 0},
	{"remap", "remap_verify_area", 0, "remap_verify_area", SEAL_BPF_TRACED_REMAP},
	{"writev_end", "vfs_writev", 0, "generic_atomic_write_valid", 0},
	{"writev", "vfs_writev", 0, "generic_atomic_write_valid", SEAL_BPF_TRACED_WRITEV},
	{"aio_end", "aio_write", 0, "generic_atomic_write_valid", 0},
	{"aio", "aio_write", 0, "generic_atomic_write_valid", 0},
	{"uring_end", "io_write", 0, "generic_atomic_write_valid", 0},
	{"uring", "io_write", 0, "generic_atomic_write_valid", 0},
	/* Last: it looks for what those before leave. */
	{"file_permission", "bpf_lsm_file_permission", 0, 0, 0},
};

#define BPF_PROGRAMS (sizeof(bpf_program_needs) / sizeof(bpf_program_needs[0]))

#endif

/* Programs that the service runs (BPF_PROG_TYPE_SYSCALL) to prove that nothing is left of a holder. They
 * attach to nothing, so that they work without "bpf" in the kernel's lsm= list. Each takes a struct
 * seal_proof, and returns 0 or -errno: the answer cannot be told. */
#include "kernel_types.h"

#include <linux/bpf.h>
#include <linux/errno.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "sealsvc/proof_layout.h"

#define S_DAX (1 << 13) /* include/linux/fs.h */

char licence[] SEC("license") = "Dual MIT/GPL";

/* Since v6.15 (fs/dax.c): a file system that frees blocks waits for references to their pages whether
 * or not anybody maps the file. Before, dax_layout_busy_page_range() asked mapping_mapped() first. */
extern const void dax_break_layout __ksym __weak;

/* Where struct page of frame 0 would be. x86 with CONFIG_DYNAMIC_MEMORY_LAYOUT (arch/x86/mm/kaslr.c). */
extern const void vmemmap_base __ksym __weak;

/* Since v6.7 (kernel/bpf/task_iter.c) and v6.2, for this type of program since v6.10. Weak, so that the
 * other programs load where these are not. */
struct bpf_iter_task_vma {
	__u64 opaque;
};
extern int bpf_iter_task_vma_new(struct bpf_iter_task_vma *it, struct task_struct *task,
				 __u64 address) __ksym __weak;
extern struct vm_area_struct *bpf_iter_task_vma_next(struct bpf_iter_task_vma *it) __ksym __weak;
extern void bpf_iter_task_vma_destroy(struct bpf_iter_task_vma *it) __ksym __weak;
extern struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak;
extern void bpf_task_release(struct task_struct *task) __ksym __weak;

static __always_inline struct file *file_of(int64_t fd)
{
	struct files_struct *files = ((struct task_struct *)bpf_get_current_task_btf())->files;
	struct file *file = 0;

	if (!files || fd < 0 || fd >= files->fdt->max_fds)
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), files->fdt->fd + fd);
	return file;
}

/* Does any process map the file of `fd`, shared or private? If none does, the tree of the areas that map it
 * is empty; an area leaves the tree after its pages are unmapped. Where the kernel does not wait for
 * references to a DAX file's pages, an empty tree is no proof, and the answer is 1. */
SEC("syscall")
int mapped(struct seal_proof *q)
{
	struct file *file = file_of(q->fd);
	struct inode *inode = file ? BPF_CORE_READ(file, f_inode) : 0;

	if (!inode)
		return -EBADF;
	if (BPF_CORE_READ(inode, i_flags) & S_DAX && !&dax_break_layout)
		q->answer = 1;
	else
		q->answer = !!BPF_CORE_READ(inode, i_mapping, i_mmap.rb_root.rb_node);
	return 0;
}

/* Fills in the description of `fd`. */
SEC("syscall")
int describe(struct seal_proof *q)
{
	struct file *file = file_of(q->fd);

	if (!file)
		return -EBADF;
	q->description.file = (__u64)file;
	q->description.cred = (__u64)BPF_CORE_READ(file, f_cred);
	return 0;
}

/* f_count until v6.12; then f_ref (include/linux/file_ref.h), which begins at 0. */
static __always_inline __u64 references_to(struct file *file)
{
	struct file___counted *old = (void *)file;
	__u64 count;

	if (bpf_core_field_exists(old->f_count)) {
		count = (__u64)BPF_CORE_READ(old, f_count.counter);
		return (__s64)count > 0 ? count : 0;
	}
	count = (__u64)BPF_CORE_READ(file, f_ref.refcnt.counter);
	return count < 0xC000000000000000ULL ? count + 1 : 0;
}

/* Is the description still referenced by anything: a descriptor, a mapping, a message in flight? And how
 * often (`count`)? `fd` is another one of the same file. The memory of a description that is gone may serve another: that one is
 * taken for it only when it is of the same file and was opened with the same credentials. */
SEC("syscall")
int alive(struct seal_proof *q)
{
	struct file *anchor = file_of(q->fd), *file = (struct file *)q->description.file;
	struct inode *inode = anchor ? BPF_CORE_READ(anchor, f_inode) : 0;

	if (!inode || !file)
		return -EBADF;
	q->count = references_to(file);
	q->answer = BPF_CORE_READ(file, f_inode) == inode &&
		    (__u64)BPF_CORE_READ(file, f_cred) == q->description.cred && q->count;
	return 0;
}

static __always_inline void note_area(struct seal_proof *q, struct vm_area_struct *area,
				      struct inode *inode)
{
	struct file *file = BPF_CORE_READ(area, vm_file);
	__u64 start = BPF_CORE_READ(area, vm_pgoff) << 12;
	__u64 end = start + BPF_CORE_READ(area, vm_end) - BPF_CORE_READ(area, vm_start);
	int is_own = (__u64)file == q->description.file;

	if (is_own)
		q->areas++;
	if (start < q->end && end > q->start && (is_own || BPF_CORE_READ(file, f_inode) == inode))
		q->answer |= is_own ? SEAL_MAPS_BY_DESCRIPTION : SEAL_MAPS_OTHERWISE;
}

static __always_inline int look_at_areas(struct seal_proof *q, struct task_struct *task,
					 struct inode *inode)
{
	struct bpf_iter_task_vma areas;
	struct vm_area_struct *area;
	int error;

	q->memory = (__u64)BPF_CORE_READ(task, mm);
	error = bpf_iter_task_vma_new(&areas, task, 0);
	while ((area = bpf_iter_task_vma_next(&areas)))
		if (area->vm_file)
			note_area(q, area, inode);
	bpf_iter_task_vma_destroy(&areas);
	return error == -ENOENT ? 0 : error; /* it has no memory */
}

struct table {
	struct file **slots;
	__u64 file;
	__u32 found;
};

static int look_at_slot(__u64 index, struct table *table)
{
	__u64 file = 0;

	bpf_probe_read_kernel(&file, sizeof(file), table->slots + index);
	table->found += file == table->file;
	return 0;
}

static __always_inline void look_at_descriptors(struct seal_proof *q, struct task_struct *task)
{
	struct files_struct *files = BPF_CORE_READ(task, files);
	struct table table = {.file = q->description.file};

	q->table = (__u64)files;
	if (!files)
		return;
	table.slots = BPF_CORE_READ(files, fdt, fd);
	bpf_loop(BPF_CORE_READ(files, fdt, max_fds), look_at_slot, &table, 0);
	q->descriptors = table.found;
}

/* What does `task`, a number of the first pid namespace, map of [start, end) of the file of `fd`: SEAL_MAPS_*.
 * And which references does it have to the description? -EBUSY: its memory is being changed, or somebody
 * holds its mmap_lock. Nothing of it waits for anybody. */
SEC("syscall")
int held(struct seal_proof *q)
{
	struct file *anchor = file_of(q->fd);
	struct inode *inode = anchor ? BPF_CORE_READ(anchor, f_inode) : 0;
	struct task_struct *task;
	int error;

	if (!inode)
		return -EBADF;
	task = bpf_task_from_pid(q->task);
	if (!task)
		return -ESRCH;
	look_at_descriptors(q, task);
	error = look_at_areas(q, task, inode);
	bpf_task_release(task);
	return error;
}

/* Answers 1 when the kernel itself waits for references to the pages of DAX files. */
SEC("syscall")
int waits(struct seal_proof *q)
{
	q->answer = !!&dax_break_layout;
	return 0;
}

struct look {
	__u64 pages; /* where struct page of frame 0 would be */
	__u64 frame;
	__s32 error;
};

static int look_at_page(__u64 index, struct look *look)
{
	__u64 size = bpf_core_type_size(struct page);
	struct page *page = (struct page *)(look->pages + look->frame * size);
	atomic_t count = {0};

	if (bpf_core_read(&count, sizeof(count), &page->_refcount)) {
		look->error = -EFAULT;
		return 1;
	}
	/* A page of persistent memory that nobody refers to has a count of 1 before v6.15. */
	if (count.counter != 1) {
		look->error = count.counter > 1 ? 1 : -EPROTO;
		return 1;
	}
	look->frame++;
	return 0;
}

/* Does anything refer to one of `count` pages of persistent memory from `frame` on (I/O under way, a pipe)?
 * Then `frame` is the first. Only before v6.15: mappings count as references since. */
SEC("syscall")
int referenced(struct seal_proof *q)
{
	struct look look = {.frame = q->frame};

	if (&dax_break_layout || !&vmemmap_base)
		return -EOPNOTSUPP;
	if (bpf_probe_read_kernel(&look.pages, sizeof(look.pages), &vmemmap_base))
		return -EFAULT;
	if (bpf_loop(q->count, look_at_page, &look, 0) < 0)
		return -E2BIG;
	if (look.error < 0)
		return look.error;
	q->answer = look.error;
	q->frame = look.frame;
	return 0;
}

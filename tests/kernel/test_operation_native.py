"""What the kernel stack of a stopped task proves. The stacks are of /proc/TID/stack (6.18)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sealsvc.linux.native import ffi, lib

ASKS = "fanotify_handle_event fsnotify __fsnotify_parent "
AREA = ASKS + "fsnotify_pre_content "
VERIFY = AREA + "rw_verify_area "
ENTRY = " do_syscall_64 entry_SYSCALL_64_after_hwframe"
WORKER = (
    " __io_issue_sqe io_issue_sqe io_wq_submit_work io_worker_handle_work io_wq_worker"
    " ret_from_fork ret_from_fork_asm"
)
IA32 = " do_int80_emulation asm_int80_emulation"
TASK_WORK = " tctx_task_work_run tctx_task_work task_work_run" + ENTRY
OPENED = ASKS + "do_dentry_open vfs_open path_openat do_filp_open "

PROVEN = {
    "pread": (VERIFY + "vfs_read __x64_sys_pread64" + ENTRY, "read"),
    "read-ia32": (VERIFY + "vfs_read ksys_read" + IA32, "read"),
    "read-uring-worker": (VERIFY + "__io_read io_read" + WORKER, "read"),
    "read-task-work": (VERIFY + "__io_read io_read __io_issue_sqe" + TASK_WORK, "read"),
    "read-aio": (VERIFY + "aio_read io_submit_one __x64_sys_io_submit" + ENTRY, "read"),
    "read-nfsd": (VERIFY + "vfs_iocb_iter_read nfsd_read nfsd kthread ret_from_fork", "read"),
    "exec-read": (VERIFY + "kernel_read bprm_execve do_execveat_common" + ENTRY, "read"),
    "mmap": (AREA + "vm_mmap_pgoff ksys_mmap_pgoff" + ENTRY, "mmap"),
    "pwrite": (VERIFY + "vfs_write __x64_sys_pwrite64" + ENTRY, "write"),
    "write-nfsd": (VERIFY + "vfs_iocb_iter_write nfsd_vfs_write nfsd kthread", "write"),
    "sendfile": (VERIFY + "do_sendfile __x64_sys_sendfile64" + ENTRY, "write"),
    "write-aio": (VERIFY + "aio_write io_submit_one __x64_sys_io_submit" + ENTRY, "write-unknown"),
    "write-uring": (VERIFY + "io_write" + WORKER, "write-unknown"),
    "writev-ia32": (VERIFY + "vfs_writev do_pwritev" + IA32, "write-unknown"),
    "truncate-uring": (AREA + "do_ftruncate io_ftruncate" + WORKER, "truncate"),
    "truncate-ia32": (AREA + "do_ftruncate __ia32_compat_sys_ftruncate" + IA32, "truncate"),
    "remove": (
        AREA + "vfs_fallocate madvise_vma_behavior madvise_do_behavior do_madvise"
        " __x64_sys_madvise" + ENTRY,
        "madvise-remove",
    ),
    "clone": (
        AREA + "remap_verify_area vfs_clone_file_range ioctl_file_clone do_vfs_ioctl"
        " __x64_sys_ioctl" + ENTRY,
        "clone",
    ),
    "copy-nfsd": (VERIFY + "vfs_copy_file_range nfsd4_do_async_copy kthread", "copy-file-range"),
    "punch-uring": (AREA + "vfs_fallocate io_fallocate" + WORKER, "hidden"),
    "punch-nfsd": (AREA + "vfs_fallocate nfsd4_vfs_fallocate nfsd4_deallocate nfsd", "hidden"),
    "punch-overlay": (
        AREA + "vfs_fallocate ovl_fallocate vfs_fallocate __x64_sys_fallocate" + ENTRY,
        "hidden",
    ),
    "punch-task-work": (AREA + "vfs_fallocate io_fallocate __io_issue_sqe" + TASK_WORK, "hidden"),
    "punch-ia32": (
        AREA + "vfs_fallocate ksys_fallocate __ia32_sys_ia32_fallocate" + IA32,
        "hidden",
    ),
    "no-such-function": (VERIFY + "vfs_frobnicate" + ENTRY, "hidden"),
    "elsewhere": ("filemap_read vfs_read ksys_read" + ENTRY, "hidden"),
    "nothing": ("", "hidden"),
}
OPENS = {
    "exec": (OPENED + "do_open_execat alloc_bprm __x64_sys_execve" + ENTRY, "execve"),
    "nfsd": (ASKS + "do_dentry_open vfs_open dentry_open nfsd_open nfsd4_open nfsd", "open"),
    "ksmbd": (
        ASKS + "do_dentry_open vfs_open dentry_open smb2_open handle_ksmbd_work process_one_work",
        "open",
    ),
    "io_uring": (OPENED + "io_openat2" + WORKER, "open-hidden"),
    "core-dump": (
        OPENED + "file_open_name filp_open do_coredump vfs_coredump get_signal"
        " arch_do_signal_or_restart" + ENTRY,
        "open-hidden",
    ),
    "overlay": (
        ASKS + "do_dentry_open vfs_open backing_file_open ovl_open_realfile ovl_open"
        " do_dentry_open vfs_open path_openat do_filp_open do_sys_openat2 __x64_sys_openat" + ENTRY,
        "open-hidden",
    ),
    "ecryptfs": (
        ASKS + "do_dentry_open vfs_open dentry_open ecryptfs_privileged_open",
        "open-hidden",
    ),
    "ia32": (OPENED + "do_sys_openat2 __ia32_compat_sys_open" + IA32, "open-hidden"),
    "acct": (OPENED + "file_open_name acct_on __x64_sys_acct" + ENTRY, "open-hidden"),
    "truncated-stack": (OPENED + "do_sys_openat2", "open-hidden"),
}
PLAIN = {
    "openat": (OPENED + "do_sys_openat2 __x64_sys_openat" + ENTRY, True),
    "handle": (
        ASKS + "do_dentry_open vfs_open path_openat do_file_open_root file_open_root"
        " do_handle_open" + ENTRY,
        True,
    ),
    "fallocate": (AREA + "vfs_fallocate __x64_sys_fallocate" + ENTRY, False),
    "resvsp": (AREA + "vfs_fallocate ioctl_preallocate __x64_sys_ioctl" + ENTRY, False),
    "pwritev2": (VERIFY + "vfs_writev do_pwritev" + ENTRY, False),
}


@contextmanager
def stack_of(frames: str, state: int = lib.SEAL_TASK_BLOCKED) -> Iterator[Any]:
    names = [ffi.new("char[]", name.encode()) for name in frames.split()]
    stack = ffi.new("struct seal_stack *", {"state": state, "count": len(names)})
    for at, name in enumerate(names):
        stack.frame[at] = name
    yield stack


WHOLE = VERIFY + "vfs_write __x64_sys_pwrite64" + ENTRY
# As seen on 6.18: the task was woken for nothing while its stack was walked.
CUT = "fanotify_handle_event"


def test_what_is_left_of_a_stack_proves_nothing_and_does_not_stay() -> None:
    assert judged(CUT, False) == ("hidden", 0)
    with stack_of(CUT) as cut, stack_of(WHOLE) as whole, stack_of(WHOLE) as again:
        assert not lib.seal_stack_is_same(cut, whole)
        assert lib.seal_stack_is_same(whole, again)
    with stack_of(CUT) as cut, stack_of("", lib.SEAL_TASK_RUNNING) as running:
        assert not lib.seal_stack_is_same(cut, running)
    with stack_of("vfs_read") as one, stack_of("vfs_write") as other:
        assert not lib.seal_stack_is_same(one, other)


@pytest.mark.parametrize(
    ("name", "among", "proven"),
    [("READ", 0, True), ("WRITE", 0, True), ("PUNCH", 0, True), ("HIDDEN", 1, True),
     ("HIDDEN", 0, False), ("OPEN_HIDDEN", 0, False), ("WRITE_UNKNOWN", 0, False)],
)  # fmt: skip
def test_what_may_be_anything_is_not_proven(name: str, among: int, proven: bool) -> None:
    operation = ffi.new("struct seal_operation *", {"op": getattr(lib, f"SEAL_OP_{name}")})
    assert bool(lib.seal_operation_is_proven(operation, among)) is proven


def judged(frames: str, is_open: bool) -> tuple[str, int]:
    with stack_of(frames) as stack:
        return judged_stack(stack, is_open)


def judged_stack(stack: Any, is_open: bool) -> tuple[str, int]:
    event = ffi.new("struct seal_event *", {"is_open": is_open, "has_range": not is_open})
    out = ffi.new("struct seal_operation *")
    among = lib.seal_operation_judge(event, stack, out)
    return ffi.string(lib.seal_op_name(out.op)).decode(), among


@pytest.mark.parametrize("name", PROVEN)
def test_the_stack_tells_what_an_access_is(name: str) -> None:
    frames, operation = PROVEN[name]
    assert judged(frames, False) == (operation, 0)


@pytest.mark.parametrize("name", OPENS)
def test_the_stack_tells_what_an_open_is(name: str) -> None:
    frames, operation = OPENS[name]
    assert judged(frames, True) == (operation, 0)


@pytest.mark.parametrize("name", PLAIN)
def test_registers_are_asked_of_a_plain_system_call(name: str) -> None:
    frames, is_open = PLAIN[name]
    operation, among = judged(frames, is_open)
    assert operation in ("open-hidden", "hidden", "write-unknown")
    assert among


OPEN, WRITE = 1 << lib.SEAL_OP_OPEN, 1 << lib.SEAL_OP_WRITE
FALLOCATE = 1 << lib.SEAL_OP_PUNCH | 1 << lib.SEAL_OP_ALLOCATE
HIGH = 1 << 32  # a bit that the kernel does not look at


@pytest.mark.parametrize(
    ("number", "at", "argument", "among", "operation"),
    [
        (257, 2, 0, OPEN | 1 << lib.SEAL_OP_OPEN_TRUNC, "open"),
        (257, 2, HIGH | 0o1000, OPEN | 1 << lib.SEAL_OP_OPEN_TRUNC, "open-truncate"),
        (437, 2, 0, OPEN, "hidden"),  # openat2: the flags are in memory
        (285, 1, HIGH | 3, FALLOCATE, "fallocate-punch-hole"),
        (285, 1, 3, WRITE, "hidden"),  # the stack says that it is something else
        (285, 1, 0x100, FALLOCATE, "hidden"),
        (16, 1, HIGH | 0x4030582B, FALLOCATE, "fallocate-punch-hole"),
        (328, 5, HIGH, WRITE, "write"),
        (328, 5, HIGH | 0x40, WRITE | 1 << lib.SEAL_OP_WRITE_ATOMIC, "write-atomic"),
        (999, 1, 0, FALLOCATE, "hidden"),
    ],
)
def test_arguments_are_as_wide_as_the_kernel_reads_them(
    number: int, at: int, argument: int, among: int, operation: str
) -> None:
    call = ffi.new("struct seal_syscall *", {"state": lib.SEAL_TASK_BLOCKED, "nr": number})
    call.args[at] = argument
    out = ffi.new("struct seal_operation *", {"op": lib.SEAL_OP_HIDDEN})
    lib.seal_operation_narrow(call, among, out)
    assert ffi.string(lib.seal_op_name(out.op)).decode() == operation


def test_advice_is_an_int() -> None:
    out = ffi.new("struct seal_operation *")
    call = ffi.new("struct seal_syscall *", {"nr": 28})
    for advice, operation in ((9, "madvise-remove"), (HIGH | 9, "madvise-remove"), (99, "hidden")):
        call.args[2] = advice
        assert lib.seal_operation_of_call(call, out)
        assert ffi.string(lib.seal_op_name(out.op)).decode() == operation

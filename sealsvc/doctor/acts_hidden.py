"""Operations whose kind does not stand in the registers of the task that does them, or stands there
otherwise than the kernel takes it: workers and links of io_uring, 32-bit calls, core dumps."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from sealsvc.doctor import compat, syscalls, uring
from sealsvc.doctor.acts_file import DATA, mapped
from sealsvc.doctor.acts_tools import ToolFailed
from sealsvc.doctor.scene import CHUNK, START, Scene

_PUNCH = syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE
_CORE_LIMIT = 256 * 1024  # bytes of a dump; what matters is the truncation before it


def _punch(scene: Scene, how: int) -> uring.Entry:
    return uring.Entry(uring.FALLOCATE, scene.fd, off=START, addr=CHUNK, length=_PUNCH, how=how)


def worker_punch(scene: Scene) -> None:
    uring.submit(_punch(scene, uring.ASYNC))


def linked_punch(scene: Scene) -> None:
    first = uring.Entry(uring.NOP, -1, how=uring.LINK)
    uring.submit_all([first, _punch(scene, 0)])


def worker_ftruncate(scene: Scene) -> None:
    uring.submit(uring.Entry(uring.FTRUNCATE, scene.fd, off=START + CHUNK, how=uring.ASYNC))


def worker_write_atomic(scene: Scene) -> None:
    buffer = syscalls.aligned(DATA[: CHUNK // 4])
    entry = uring.Entry(
        uring.WRITE,
        scene.fd,
        off=START,
        addr=syscalls.address(buffer),
        length=len(buffer),
        flags=syscalls.RWF_ATOMIC,
        how=uring.ASYNC,
    )
    uring.submit(entry)


def ring_remove(scene: Scene) -> None:
    address = syscalls.address(mapped(scene)) + START
    uring.submit(
        uring.Entry(uring.MADVISE, -1, addr=address, length=CHUNK, flags=syscalls.MADV_REMOVE)
    )


def ring_open_how(scene: Scene) -> None:
    uring.open_path_how(scene.path, os.O_WRONLY | os.O_TRUNC)


def remove_high_bits(scene: Scene) -> None:
    """The advice is an int to the kernel: the bits above it do not count."""
    syscalls.madvise_remove(mapped(scene), START, CHUNK, high=1)


def compat_punch(scene: Scene) -> None:
    compat.syscall(compat.FALLOCATE, scene.fd, _PUNCH, START, 0, CHUNK, 0)


def compat_ftruncate(scene: Scene) -> None:
    compat.syscall(compat.FTRUNCATE64, scene.fd, START + CHUNK, 0)


def core_dump(scene: Scene) -> None:
    """A process that dies where the file's name is `core`. The kernel unlinks that name and creates
    another file (fs/coredump.c: O_EXCL), so that the sealed one keeps its blocks. The system's
    core_pattern is not the doctor's to change."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    with_pid = Path("/proc/sys/kernel/core_uses_pid").read_text().strip()
    if (pattern, with_pid) != ("core", "0"):
        raise OSError(errno.EOPNOTSUPP, f"core dumps go to {pattern!r}")
    directory = os.path.dirname(scene.path)
    os.rename(scene.path, os.path.join(directory, "core"))
    pid = os.fork()
    if pid == 0:
        os.chdir(directory)
        resource.setrlimit(resource.RLIMIT_CORE, (_CORE_LIMIT, _CORE_LIMIT))
        os.abort()
    if not os.WCOREDUMP(os.waitpid(pid, 0)[1]):
        raise ToolFailed("no core was dumped")

"""Operations outside of the sealed range after which a plain store inside moves blocks.

XFS allocates the blocks of a copy on write for an aligned window (cowextsize, 128 KiB unless the
file's owner chose another), and every later write in the window goes to them, also to blocks that
were never shared (6.18: xfs_reflink_fill_cow_hole, xfs_atomic_write_cow_iomap_begin). Each act ends
by that store, which a shared seal lets pass.
"""

from __future__ import annotations

import fcntl
import os

from sealsvc.doctor import syscalls, uring
from sealsvc.doctor.acts_file import DATA
from sealsvc.doctor.scene import CHUNK, LENGTH, SIZE, START, Scene

_BEHIND = START + LENGTH
_WINDOW = SIZE


def _store_inside(scene: Scene) -> None:
    """Through the page cache: writeback goes to the CoW fork whenever there is something in it
    (xfs_map_blocks), direct I/O only when the inode has the reflink flag."""
    fcntl.fcntl(scene.fd, fcntl.F_SETFL, fcntl.fcntl(scene.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
    os.pwrite(scene.fd, DATA, START)
    os.fsync(scene.fd)


def _widen(scene: Scene) -> None:
    syscalls.set_cow_hint(scene.fd, _WINDOW)


def clone_beside(scene: Scene) -> None:
    _widen(scene)
    syscalls.clone_range(scene.fd, scene.donor, _BEHIND, CHUNK)
    os.pwrite(scene.fd, syscalls.aligned(DATA), _BEHIND)
    _store_inside(scene)


def shared_beside(scene: Scene) -> None:
    """The clone's source is what is written next."""
    _widen(scene)
    syscalls.clone_range(scene.donor, scene.fd, _BEHIND, CHUNK)
    os.pwrite(scene.fd, syscalls.aligned(DATA), _BEHIND)
    _store_inside(scene)


def atomic_beside(scene: Scene) -> None:
    _widen(scene)
    syscalls.write_atomic(scene.fd, [syscalls.aligned(DATA[: CHUNK // 4])], _BEHIND)
    _store_inside(scene)


def aio_atomic_beside(scene: Scene) -> None:
    _widen(scene)
    data = syscalls.aligned(DATA[: CHUNK // 4])
    uring.aio_write(scene.fd, data, _BEHIND, syscalls.RWF_ATOMIC)
    _store_inside(scene)


def ring_atomic_beside(scene: Scene) -> None:
    _widen(scene)
    buffer = syscalls.aligned(DATA[: CHUNK // 4])
    entry = uring.Entry(
        uring.WRITE,
        scene.fd,
        off=_BEHIND,
        addr=syscalls.address(buffer),
        length=len(buffer),
        flags=syscalls.RWF_ATOMIC,
    )
    uring.submit(entry)
    _store_inside(scene)


def punch_beside(scene: Scene) -> None:
    """Punched and written again right behind the range: what is allocated there moves nothing."""
    mode = syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE
    syscalls.fallocate(scene.fd, mode, _BEHIND, CHUNK)
    os.pwrite(scene.fd, syscalls.aligned(DATA), _BEHIND)
    _store_inside(scene)

"""Operations that share, exchange or move blocks between files, and file systems' own ioctls."""

from __future__ import annotations

import os

from sealsvc.doctor import syscalls, uring
from sealsvc.doctor.acts_file import DATA
from sealsvc.doctor.scene import CHUNK, SIZE, START, Scene


def clone_source(scene: Scene) -> None:
    syscalls.clone(scene.donor, scene.fd)


def clone_destination(scene: Scene) -> None:
    syscalls.clone(scene.fd, scene.donor)


def clone_range_source(scene: Scene) -> None:
    syscalls.clone_range(scene.donor, scene.fd, START, CHUNK)


def clone_range_destination(scene: Scene) -> None:
    syscalls.clone_range(scene.fd, scene.donor, START, CHUNK)


def dedupe_source(scene: Scene) -> None:
    syscalls.dedupe_range(scene.fd, scene.donor, START, CHUNK)


def dedupe_destination(scene: Scene) -> None:
    syscalls.dedupe_range(scene.donor, scene.fd, START, CHUNK)


def exchange_first(scene: Scene) -> None:
    syscalls.exchange_range(scene.donor, scene.fd, START, CHUNK)


def exchange_second(scene: Scene) -> None:
    syscalls.exchange_range(scene.fd, scene.donor, START, CHUNK)


def swap_target(scene: Scene) -> None:
    syscalls.swap_extents(scene.fd, scene.donor)


def swap_donor(scene: Scene) -> None:
    syscalls.swap_extents(scene.donor, scene.fd)


def move_original(scene: Scene) -> None:
    syscalls.move_extents(scene.fd, scene.donor, START, CHUNK)


def move_donor(scene: Scene) -> None:
    syscalls.move_extents(scene.donor, scene.fd, START, CHUNK)


def xfs_reserve(scene: Scene) -> None:
    syscalls.reserve_space(scene.fd, SIZE, CHUNK)


def xfs_unreserve(scene: Scene) -> None:
    syscalls.unreserve_space(scene.fd, START, CHUNK)


def xfs_zero(scene: Scene) -> None:
    syscalls.zero_space(scene.fd, START, CHUNK)


def btrfs_defragment(scene: Scene) -> None:
    syscalls.btrfs_defragment(scene.fd)


def aio_write(scene: Scene) -> None:
    uring.aio_write(scene.fd, syscalls.aligned(DATA), START, 0)


def aio_write_atomic(scene: Scene) -> None:
    data = syscalls.aligned(DATA[: CHUNK // 4])
    uring.aio_write(scene.fd, data, START, syscalls.RWF_ATOMIC)


def ring_punch(scene: Scene) -> None:
    uring.submit(_punch(scene))


def ring_punch_sqpoll(scene: Scene) -> None:
    uring.submit(_punch(scene), uring.SETUP_SQPOLL)


def _punch(scene: Scene) -> uring.Entry:
    mode = syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE
    return uring.Entry(uring.FALLOCATE, scene.fd, off=START, addr=CHUNK, length=mode)


def ring_ftruncate(scene: Scene) -> None:
    uring.submit(uring.Entry(uring.FTRUNCATE, scene.fd, off=START + CHUNK))


def ring_read(scene: Scene) -> None:
    _transfer(scene, uring.READ, bytes(CHUNK), 0)


def ring_write(scene: Scene) -> None:
    _transfer(scene, uring.WRITE, DATA, 0)


def ring_write_atomic(scene: Scene) -> None:
    _transfer(scene, uring.WRITE, DATA[: CHUNK // 4], syscalls.RWF_ATOMIC)


def _transfer(scene: Scene, opcode: int, data: bytes, flags: int) -> None:
    buffer = syscalls.aligned(data)
    entry = uring.Entry(
        opcode,
        scene.fd,
        off=START,
        addr=syscalls.address(buffer),
        length=len(data),
        flags=flags,
    )
    uring.submit(entry)


def ring_open_truncate(scene: Scene) -> None:
    uring.open_path(scene.path, os.O_WRONLY | os.O_TRUNC)

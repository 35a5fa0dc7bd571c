"""The file systems' own commands that work on maps, or look as if they did."""

from __future__ import annotations

from sealsvc.doctor import syscalls
from sealsvc.doctor.scene import CHUNK, SIZE, START, Scene

_SWAP_BOOT, _ALLOC_DA_BLKS = 0x6611, 0x660C  # linux/ext4.h
_PRECACHE_EXTENTS, _CLEAR_ES_CACHE = 0x6612, 0x6628
_PROJECT = 1000


def swap_boot(scene: Scene) -> None:
    """Exchanges the whole map with that of inode 5."""
    syscalls.ext4_command(scene.fd, _SWAP_BOOT)


def allocate_delayed(scene: Scene) -> None:
    syscalls.ext4_command(scene.fd, _ALLOC_DA_BLKS)


def precache_extents(scene: Scene) -> None:
    syscalls.ext4_command(scene.fd, _PRECACHE_EXTENTS)


def clear_extent_cache(scene: Scene) -> None:
    syscalls.ext4_command(scene.fd, _CLEAR_ES_CACHE)


def commit_range(scene: Scene) -> None:
    syscalls.commit_range(scene.fd, scene.donor, START, CHUNK)


def exchange_to_end(scene: Scene) -> None:
    syscalls.exchange_to_end(scene.fd, scene.donor, START)


def cow_hint(scene: Scene) -> None:
    syscalls.set_cow_hint(scene.fd, SIZE)


def project(scene: Scene) -> None:
    syscalls.set_project(scene.fd, _PROJECT)


def free_eofblocks(scene: Scene) -> None:
    syscalls.xfs_free_eofblocks(scene.fd)


def repair_map(scene: Scene) -> None:
    syscalls.xfs_repair_map(scene.fd)

"""The ioctls that exchange extents, and a tracefs of our own. Everything raises OSError.

Numbers and layouts: fs/xfs/libxfs/xfs_fs.h (v6.12) and fs/ext4/ext4.h.
"""

from __future__ import annotations

import fcntl
import os
import struct

from sealsvc.linux import libc

_START_COMMIT, _COMMIT_RANGE = 0x80585882, 0x40585883  # since v6.12
_SWAPEXT, _MOVE_EXT = 0xC0C0586D, 0xC028660F
_COLLAPSE_RANGE = 0x08  # linux/falloc.h
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # since v5.2, the same numbers everywhere
_FSCONFIG_CMD_CREATE, _CLOEXEC = 6, 1

_RANGE = "<iIQQQQ"  # struct xfs_commit_range, without the sample at its end


def start_commit(fd: int) -> bytearray:
    """A sample of the file's times. The next change of the file gets another time than the one
    that is sampled, however soon it comes (multigrain timestamps, v6.13)."""
    request = bytearray(88)
    fcntl.ioctl(fd, _START_COMMIT, request)
    return request


def commit_range(fd: int, donor: int, length: int, sample: bytearray) -> None:
    """Exchange the first `length` bytes of both files in one transaction (the log finishes it after
    a crash), if the file is as it was sampled: else EBUSY."""
    struct.pack_into(_RANGE, sample, 0, donor, 0, 0, 0, length, 0)
    fcntl.ioctl(fd, _COMMIT_RANGE, sample)


def swap_extents(fd: int, donor: int, sample: os.stat_result) -> None:
    """XFS_IOC_SWAPEXT: exchange all extents of two files of one size, if the times of the file are
    those of the sample: else EBUSY. They stand in the xfs_bstat at byte 56."""
    request = bytearray(0xC0)
    struct.pack_into("<qqqqq", request, 0, 0, fd, donor, 0, sample.st_size)
    struct.pack_into("<Q", request, 56, sample.st_ino)
    struct.pack_into("<q", request, 56 + 32, sample.st_size)
    for at, nanoseconds in ((56, sample.st_mtime_ns), (72, sample.st_ctime_ns)):
        struct.pack_into("<qi", request, 56 + at, *divmod(nanoseconds, 10**9))
    fcntl.ioctl(fd, _SWAPEXT, request)


def move_extents(fd: int, donor: int, offset: int, length: int, block: int) -> int:
    """EXT4_IOC_MOVE_EXT: bytes that were moved. The kernel copies the data, by its page cache, each
    folio in a transaction of its own (fs/ext4/move_extent.c)."""
    first, count = offset // block, length // block
    request = bytearray(struct.pack("<IIQQQQ", 0, donor, first, first, count, 0))
    fcntl.ioctl(fd, _MOVE_EXT, request)
    moved: int = struct.unpack_from("<Q", request, 32)[0]
    return moved * block


def collapse(fd: int, length: int) -> None:
    """Take the first `length` bytes out of a file."""
    libc.call("fallocate", fd, _COLLAPSE_RANGE, 0, length)


def tracefs() -> int:
    """A descriptor of the root of tracefs, which is mounted nowhere."""
    context = libc.syscall("fsopen", _FSOPEN, b"tracefs", _CLOEXEC)
    try:
        libc.syscall("fsconfig", _FSCONFIG, context, _FSCONFIG_CMD_CREATE, 0, 0, 0)
        return libc.syscall("fsmount", _FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)

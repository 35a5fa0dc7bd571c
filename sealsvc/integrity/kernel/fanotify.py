"""FAN_FS_ERROR of fanotify(7): ext4 since Linux 5.16 (fs/ext4/super.c fsnotify_sb_error), XFS
since 7.0. The kernel keeps one event for each file system until it is read, and counts what comes
meanwhile in it (fs/notify/fanotify/fanotify.c fanotify_merge)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress

from sealsvc.integrity.kernel.wire import KernelError
from sealsvc.linux import libc

_INIT, _MARK = 300, 301  # x86-64
_CLOEXEC, _NONBLOCK, _REPORT_FID = 0x1, 0x2, 0x200
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_FS_ERROR = 0x8000
_AT_FDCWD = -100
# include/uapi/linux/fanotify.h: fanotify_event_metadata, then records that begin with a header.
_METADATA, _HEADER = struct.Struct("<IBBHQii"), struct.Struct("<BBH")
_FID, _ERROR = 1, 5  # FAN_EVENT_INFO_TYPE_*
_HANDLE = struct.Struct("<8sIi")  # __kernel_fsid_t; handle_bytes and handle_type of a file_handle
_COUNTED = struct.Struct("<iI")  # error, error_count
# FILEID_INO32_GEN of include/linux/exportfs.h, and XFS's FILEID_INO64_GEN (fs/xfs/xfs_export.h).
_SHAPES = {1: struct.Struct("<II"), 0x81: struct.Struct("<QI")}
_ROOM = 1 << 14  # bytes


class Group:
    """A group of FAN_FS_ERROR marks. Raises OSError when the kernel has none."""

    def __init__(self) -> None:
        flags = _CLOEXEC | _NONBLOCK | _REPORT_FID
        self.fd = libc.syscall("fanotify_init", _INIT, flags, os.O_RDONLY)
        self._devices: dict[bytes, int] = {}  # by fsid

    def watch(self, fd: int, device: int) -> None:
        """Raises OSError: EINVAL or EOPNOTSUPP of a kernel, or a file system, without."""
        path = f"/proc/self/fd/{fd}".encode()
        fsid = struct.pack("<Q", os.fstatvfs(fd).f_fsid & (1 << 64) - 1)  # as the events have it
        self._devices[fsid] = device
        flags = _MARK_ADD | _MARK_FILESYSTEM
        libc.syscall("fanotify_mark", _MARK, self.fd, flags, _FS_ERROR, _AT_FDCWD, path)

    def read(self) -> Iterator[tuple[int, KernelError]]:
        """The errors that there are, each with its device (0: not known)."""
        with suppress(BlockingIOError):
            for fsid, error in parse(os.read(self.fd, _ROOM)):
                yield self._devices.get(fsid, 0), error


def parse(data: bytes) -> Iterator[tuple[bytes, KernelError]]:
    """The errors among what was read from a group, each with the file system's id of statfs(2).
    Records that are not known are passed over."""
    while len(data) >= _METADATA.size:
        length, _, _, start, mask, _, _ = _METADATA.unpack_from(data)
        if not _METADATA.size <= length <= len(data):
            return
        if mask & _FS_ERROR:
            yield _parsed(data[start:length])
        data = data[length:]


def _parsed(records: bytes) -> tuple[bytes, KernelError]:
    fsid, inode, generation, error, count = bytes(8), 0, 0, 0, 1
    while len(records) >= _HEADER.size:
        kind, _, length = _HEADER.unpack_from(records)
        body, records = records[_HEADER.size : length], records[max(length, _HEADER.size) :]
        if kind == _ERROR and len(body) >= _COUNTED.size:
            error, count = _COUNTED.unpack_from(body)
        elif kind == _FID and len(body) >= _HANDLE.size:
            fsid, size, handle = _HANDLE.unpack_from(body)
            shape = _SHAPES.get(handle)
            if shape and size >= shape.size and len(body) >= _HANDLE.size + shape.size:
                inode, generation = shape.unpack_from(body, _HANDLE.size)
    return fsid, KernelError(abs(error), inode, generation, count)

"""XFS_IOC_HEALTH_MONITOR (Linux 7.0): what XFS finds wrong with its metadata, its devices, and the
data of its files (fs/xfs/xfs_healthmon.c; the structures in fs/xfs/libxfs/xfs_fs.h).

A mounted file system has one monitor at most, and gives it to whoever asks first with its root
directory. The descriptor does not keep the file system mounted."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress

from sealsvc.integrity.kernel.wire import KernelError
from sealsvc.linux import mountinfo

_MONITOR, _SAME = 0x40205844, 0x40085845  # _IOW('X', 68, 32 bytes), _IOW('X', 69, 8 bytes)
_FORMAT_V0 = 0
_REQUEST = struct.Struct("<QB23x")  # struct xfs_health_monitor: flags, format
_FD = struct.Struct("<iI")  # struct xfs_health_file_on_monitored_fs
_EVENT = struct.Struct("<IIQ32s16x")  # struct xfs_health_monitor_event: domain, type, time_ns, e
_RUNNING, _LOST, _UNMOUNT, _SICK, _CORRUPT, _HEALTHY, _SHUTDOWN, _MEDIA = range(8)
_DATA_DEVICE, _FILE_RANGE = 5, 8  # of the domains
_DOMAINS = {
    1: "the file system", 2: "allocation group", 3: "the inode", 4: "realtime group",
    _DATA_DEVICE: "the data device", 6: "the realtime device", 7: "the log device",
}  # fmt: skip
_FILE = {
    8: "buffered read", 9: "buffered write", 10: "direct read", 11: "direct write",
    12: "data lost",
}  # fmt: skip
_SHUTDOWNS = (
    "metadata I/O error", "log I/O error", "forced unmount", "corrupt in memory", "corrupt on disk",
    "device removed",
)  # fmt: skip
_SECTOR = 512
_ROOM = 64 * _EVENT.size
_ROOTS = 8  # mount points of one file system that are tried


class Taken(Exception):
    """Another program has the file system's monitor."""


def open_monitor(device: int, ours: Iterable[int]) -> int:
    """A descriptor to read events from, which does not block, or the one of `ours` that is of this
    file system as it is mounted now; -1 where there is no such thing: another file system, an
    earlier kernel, no mount of its root directory. Raises Taken."""
    for mount in _mounts(device):
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
            root = os.open(mount.point, flags)
        except OSError:
            continue
        try:
            if os.fstat(root).st_dev != device:  # another is mounted over it
                continue
            for monitor in ours:
                if _is_of(monitor, root):
                    return monitor
            made: int = fcntl.ioctl(root, _MONITOR, bytearray(_REQUEST.pack(0, _FORMAT_V0)))
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise Taken from None
            if error.errno == errno.EPERM:  # not the root directory
                continue
            return -1
        finally:
            os.close(root)
        os.set_blocking(made, False)
        return made
    return -1


def _mounts(device: int) -> list[mountinfo.Mount]:
    with open("/proc/self/mountinfo", "rb") as table:
        mounts = map(mountinfo.parsed, table.read().splitlines())
    return [m for m in mounts if m and m.device == device and m.root == "/" and m.type == "xfs"][
        :_ROOTS
    ]


def _is_of(monitor: int, fd: int) -> bool:
    """Whether it is of the mounted file system that this descriptor is on."""
    try:
        fcntl.ioctl(monitor, _SAME, _FD.pack(fd, 0))
    except OSError:  # ESTALE: of one that was unmounted
        return False
    return True


def read(monitor: int) -> tuple[list[KernelError], int, bool]:
    """The errors that there are, how many more the kernel has not kept, and whether the file system
    is still mounted."""
    with suppress(BlockingIOError):
        data = os.read(monitor, _ROOM)
        errors, lost = parse(data)
        return errors, lost, bool(data)
    return [], 0, True


def parse(data: bytes) -> tuple[list[KernelError], int]:
    """As `read`. Events that are no errors, or not known, are passed over."""
    errors, lost = list[KernelError](), 0
    for domain, kind, _, body in _EVENT.iter_unpack(data[: len(data) // _EVENT.size * _EVENT.size]):
        if kind == _LOST:
            lost += struct.unpack_from("<Q", body)[0]
        else:
            errors += _error(domain, kind, body)
    return errors, lost


def _error(domain: int, kind: int, body: bytes) -> Iterator[KernelError]:
    if kind in (_SICK, _CORRUPT):
        yield _metadata(domain, kind, body)
    elif kind == _SHUTDOWN:
        (mask,) = struct.unpack_from("<I", body)
        why = [name for bit, name in enumerate(_SHUTDOWNS) if mask >> bit & 1]
        yield KernelError(errno.EIO, detail=f"shut down: {', '.join(why) or hex(mask)}")
    elif kind == _MEDIA:
        sector, count = struct.unpack_from("<QQ", body)
        where = sector * _SECTOR if domain == _DATA_DEVICE else -1
        detail = f"{_DOMAINS.get(domain, 'a device')} lost sectors {sector} to {sector + count - 1}"
        yield KernelError(errno.EIO, length=count * _SECTOR, physical=where, detail=detail)
    elif kind in _FILE and domain == _FILE_RANGE:
        at, length, inode, generation, number = struct.unpack_from("<QQQII", body)
        yield KernelError(number, inode, generation, 1, at, length, detail=_FILE[kind])


def _metadata(domain: int, kind: int, body: bytes) -> KernelError:
    where, found = _DOMAINS.get(domain, f"domain {domain}"), "sick" if kind == _SICK else "corrupt"
    inode = generation = 0
    if domain == 3:
        mask, generation, inode = struct.unpack_from("<IIQ", body)
    elif domain in (2, 4):
        mask, number = struct.unpack_from("<II", body)
        where += f" {number}"
    else:
        (mask,) = struct.unpack_from("<I", body)
    detail = f"metadata of {where} is {found} (mask {mask:#x})"
    return KernelError(errno.EUCLEAN, inode, generation, detail=detail)

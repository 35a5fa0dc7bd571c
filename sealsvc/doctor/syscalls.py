"""The system calls and ioctls that Python does not wrap. Everything raises OSError.

Numbers and layouts are those of the kernel's uapi headers; each is written once, here. Callers
pass offsets and lengths in bytes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
from collections.abc import Mapping, Sequence

from sealsvc.linux import libc

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE = 0x01, 0x02, 0x08  # linux/falloc.h
ZERO_RANGE, INSERT_RANGE, UNSHARE_RANGE, WRITE_ZEROES = 0x10, 0x20, 0x40, 0x80
RWF_ATOMIC = 0x40  # since v6.11
MADV_REMOVE = 9
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NOATIME_FLAG = 0x80  # FS_NOATIME_FL

_FICLONE, _FICLONERANGE, _FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
_EXCHANGE_RANGE, _SWAPEXT, _MOVE_EXT = 0x40285881, 0xC0C0586D, 0xC028660F
_RESVSP, _UNRESVSP, _XFS_ZERO = 0x4030582A, 0x4030582B, 0x40305839
_FITRIM, _FIFREEZE, _FITHAW = 0xC0185879, 0xC0045877, 0xC0045878
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_XFS_START_COMMIT, _XFS_COMMIT_RANGE = 0x80585882, 0x40585883  # since v6.12
_XFS_FREE_EOFBLOCKS, _XFS_SCRUB = 0x8080583A, 0xC040583C
_BTRFS_DEFRAG = 0x50009402
_LOOP_GET_FREE, _LOOP_CONFIGURE, _LOOP_SET_CAPACITY = 0x4C82, 0x4C0A, 0x4C07
_BLKDISCARD = 0x1277
_LO_AUTOCLEAR = 4
_FILE_SETATTR = 469  # since v6.17, the same number everywhere
_IO_SETUP = {"x86_64": 206, "aarch64": 0}
_IO_SUBMIT = {"x86_64": 209, "aarch64": 2}
_IO_GETEVENTS = {"x86_64": 208, "aarch64": 4}
_MADVISE = {"x86_64": 28, "aarch64": 233}


def _machine(table: Mapping[str, int]) -> int:
    try:
        return table[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, "no system call numbers for this machine") from None


def aio_numbers() -> tuple[int, int, int]:
    return _machine(_IO_SETUP), _machine(_IO_SUBMIT), _machine(_IO_GETEVENTS)


def address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def aligned(data: bytes) -> mmap.mmap:
    """A page-aligned copy, for O_DIRECT."""
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return buffer


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc.call("fallocate", fd, mode, offset, length)


def madvise_remove(mapping: mmap.mmap, offset: int, length: int, high: int = 0) -> None:
    """`high` are bits above those of the int that the kernel takes for the advice."""
    advice = high << 32 | MADV_REMOVE
    libc.syscall("madvise", _machine(_MADVISE), address(mapping) + offset, length, advice)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    libc.call(
        "mount",
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )


def umount(target: str, flags: int = 0) -> None:
    libc.call("umount2", os.fsencode(target), flags)


def unshare_mounts() -> None:
    """A mount namespace of our own whose mounts nobody else sees."""
    libc.call("unshare", CLONE_NEWNS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def prctl(option: int, value: int) -> None:
    libc.call("prctl", option, ctypes.c_ulong(value), 0, 0, 0)


def open_by_handle(directory: int, path: str, flags: int) -> int:
    """Open `path` through its file handle; only the second of the two calls opens the file."""
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    at_fdcwd = -100
    libc.call("name_to_handle_at", at_fdcwd, os.fsencode(path), handle, ctypes.byref(mount_id), 0)
    return libc.call("open_by_handle_at", directory, handle, flags | os.O_CLOEXEC)


def _ioctl(fd: int, command: int, layout: str, *values: int) -> bytes:
    buffer = bytearray(struct.pack(layout, *values))
    fcntl.ioctl(fd, command, buffer)
    return bytes(buffer)


def clone(destination: int, source: int) -> None:
    fcntl.ioctl(destination, _FICLONE, source)


def clone_range(destination: int, source: int, offset: int, length: int) -> None:
    _ioctl(destination, _FICLONERANGE, "<qQQQ", source, offset, length, offset)


def dedupe_range(source: int, destination: int, offset: int, length: int) -> None:
    """The ioctl itself succeeds; what happened to the one destination stands in its status."""
    layout = "<QQHHIqQQiI"
    out = _ioctl(
        source, _FIDEDUPERANGE, layout, offset, length, 1, 0, 0, destination, offset, 0, 0, 0
    )
    status = struct.unpack(layout, out)[8]
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    if status:
        raise OSError(errno.EILSEQ, "the ranges to deduplicate differ")


def exchange_range(file2: int, file1: int, offset: int, length: int) -> None:
    _ioctl(file2, _EXCHANGE_RANGE, "<iIQQQQ", file1, 0, offset, offset, length, 0)


def exchange_to_end(file2: int, file1: int, offset: int) -> None:
    """XFS_EXCHANGE_RANGE_TO_EOF: the kernel takes the length from the files."""
    _ioctl(file2, _EXCHANGE_RANGE, "<iIQQQQ", file1, 0, offset, offset, 0, 1)


def commit_range(file2: int, file1: int, offset: int, length: int) -> None:
    """XFS_IOC_COMMIT_RANGE: an exchange, if `file2` is as it was at XFS_IOC_START_COMMIT, which
    samples it into the last 48 bytes."""
    layout = "<iIQQQQ"
    request = bytearray(struct.pack(layout, file1, 0, offset, offset, length, 0) + bytes(48))
    fcntl.ioctl(file2, _XFS_START_COMMIT, request)
    struct.pack_into(layout, request, 0, file1, 0, offset, offset, length, 0)
    fcntl.ioctl(file2, _XFS_COMMIT_RANGE, request)


def swap_extents(target: int, donor: int) -> None:
    """XFS SWAPEXT. The kernel compares the times in the xfs_bstat (at byte 56) with the target's
    to see that nobody wrote to it since the caller looked."""
    now = os.fstat(target)
    request = bytearray(0xC0)
    struct.pack_into("<qqqqq", request, 0, 0, target, donor, 0, now.st_size)
    bstat = 56
    struct.pack_into("<Q", request, bstat, now.st_ino)
    struct.pack_into("<q", request, bstat + 32, now.st_size)
    for at, nanoseconds in ((56, now.st_mtime_ns), (72, now.st_ctime_ns)):
        struct.pack_into("<qi", request, bstat + at, *divmod(nanoseconds, 10**9))
    fcntl.ioctl(target, _SWAPEXT, request)


def move_extents(original: int, donor: int, offset: int, length: int) -> None:
    block = os.fstatvfs(original).f_bsize
    first, count = offset // block, length // block
    _ioctl(original, _MOVE_EXT, "<IIQQQQ", 0, donor, first, first, count, 0)


def _space(fd: int, command: int, offset: int, length: int) -> None:
    _ioctl(fd, command, "<hhxxxxqqiI4i", 0, 0, offset, length, 0, 0, 0, 0, 0, 0)


def reserve_space(fd: int, offset: int, length: int) -> None:
    _space(fd, _RESVSP, offset, length)


def unreserve_space(fd: int, offset: int, length: int) -> None:
    _space(fd, _UNRESVSP, offset, length)


def zero_space(fd: int, offset: int, length: int) -> None:
    _space(fd, _XFS_ZERO, offset, length)


def set_cow_hint(fd: int, size: int) -> None:
    """XFS: how far a CoW preallocation reaches (FS_XFLAG_COWEXTSIZE); `size` in bytes."""
    flags, extent, extents, project, _ = _attributes(fd)
    _set_attributes(fd, flags | 0x00010000, extent, extents, project, size)


def set_project(fd: int, project: int) -> None:
    flags, extent, extents, _, cow = _attributes(fd)
    _set_attributes(fd, flags, extent, extents, project, cow)


def _attributes(fd: int) -> tuple[int, ...]:
    """struct fsxattr: xflags, extsize, nextents, projid, cowextsize."""
    return struct.unpack("<5I8x", fcntl.ioctl(fd, _FSGETXATTR, bytes(28)))


def _set_attributes(fd: int, *values: int) -> None:
    fcntl.ioctl(fd, _FSSETXATTR, struct.pack("<5I8x", *values))


def xfs_free_eofblocks(fd: int) -> None:
    """Trim preallocations beyond EOF and in CoW forks, in the whole file system, and wait."""
    request = struct.pack("<4I14Q", 1, 1, *[0] * 16)  # version 1, XFS_EOF_FLAGS_SYNC
    fcntl.ioctl(fd, _XFS_FREE_EOFBLOCKS, bytearray(request))


def xfs_repair_map(fd: int) -> None:
    """Online repair rebuilds the data fork of `fd`, whether it is damaged or not."""
    data_fork, repair, force = 12, 1 << 0, 1 << 8  # XFS_SCRUB_TYPE_BMBTD, XFS_SCRUB_IFLAG_*
    _ioctl(fd, _XFS_SCRUB, "<IIQII5Q", data_fork, repair | force, 0, 0, 0, 0, 0, 0, 0, 0)


def ext4_command(fd: int, command: int) -> None:
    """An EXT4_IOC_* that takes no argument."""
    fcntl.ioctl(fd, command)


def btrfs_defragment(fd: int) -> None:
    fcntl.ioctl(fd, _BTRFS_DEFRAG, 0)


def trim(fd: int, offset: int, length: int) -> None:
    _ioctl(fd, _FITRIM, "<QQQ", offset, length, 0)


def freeze(fd: int) -> None:
    fcntl.ioctl(fd, _FIFREEZE, 0)


def thaw(fd: int) -> None:
    fcntl.ioctl(fd, _FITHAW, 0)


def toggle_flag(fd: int, flag: int) -> None:
    flags: int = struct.unpack("<i", fcntl.ioctl(fd, _GETFLAGS, bytes(4)))[0]
    fcntl.ioctl(fd, _SETFLAGS, struct.pack("<i", flags ^ flag))


def set_flag(fd: int, flag: int) -> None:
    flags: int = struct.unpack("<i", fcntl.ioctl(fd, _GETFLAGS, bytes(4)))[0]
    fcntl.ioctl(fd, _SETFLAGS, struct.pack("<i", flags | flag))


def file_setattr(path: str, xflags: int) -> None:
    """struct file_attr: xflags, extsize, nextents, projid, cowextsize."""
    attributes = struct.pack("<QIIII", xflags, 0, 0, 0, 0)
    at_fdcwd = -100
    name = os.fsencode(path) + b"\0"
    libc.syscall("file_setattr", _FILE_SETATTR, at_fdcwd, name, attributes, len(attributes), 0)


def attach_loop(fd: int) -> int:
    """A loop device on the file `fd`; it detaches itself when the descriptor that is returned is
    closed, so that nothing is left even when this process is killed."""
    info = bytearray(304)
    struct.pack_into("<II", info, 0, fd, 0)
    struct.pack_into("<I", info, 8 + 52, _LO_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(8):
            number = fcntl.ioctl(control, _LOOP_GET_FREE)
            loop = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC | os.O_DIRECT)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, info)
                return loop
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # somebody else took the same free number
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")


def reread_loop_size(loop: int) -> None:
    fcntl.ioctl(loop, _LOOP_SET_CAPACITY)


def discard(device: int, offset: int, length: int) -> None:
    fcntl.ioctl(device, _BLKDISCARD, struct.pack("<QQ", offset, length))


def write_atomic(fd: int, buffers: Sequence[mmap.mmap], offset: int) -> int:
    return os.pwritev(fd, buffers, offset, RWF_ATOMIC)

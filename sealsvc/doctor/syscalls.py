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
from collections.abc import Sequence

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
_BTRFS_DEFRAG = 0x50009402
_LOOP_GET_FREE, _LOOP_CONFIGURE, _LOOP_SET_CAPACITY = 0x4C82, 0x4C0A, 0x4C07
_BLKDISCARD = 0x1277
_LO_AUTOCLEAR = 4
_FILE_SETATTR = 469  # since v6.17, the same number everywhere
_NUMBERS = {  # io_setup, io_submit, io_getevents
    "x86_64": (206, 209, 208),
    "aarch64": (0, 2, 4),
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def syscall(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words))


def aio_numbers() -> tuple[int, int, int]:
    try:
        return _NUMBERS[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, "no AIO system call numbers for this machine") from None


def address(buffer: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def aligned(data: bytes) -> mmap.mmap:
    """A page-aligned copy, for O_DIRECT."""
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    return buffer


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _checked(_libc.fallocate(fd, mode, offset, length))


def madvise_remove(mapping: mmap.mmap, offset: int, length: int) -> None:
    _checked(_libc.madvise(address(mapping) + offset, length, MADV_REMOVE))


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        )
    )


def umount(target: str, flags: int = 0) -> None:
    _checked(_libc.umount2(os.fsencode(target), flags))


def unshare_mounts() -> None:
    """A mount namespace of our own whose mounts nobody else sees."""
    _checked(_libc.unshare(CLONE_NEWNS))
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def open_by_handle(directory: int, path: str, flags: int) -> int:
    """Open `path` through its file handle; only the second of the two calls opens the file."""
    handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0), 8 + 128)
    mount_id = ctypes.c_int()
    at_fdcwd = -100
    _checked(
        _libc.name_to_handle_at(at_fdcwd, os.fsencode(path), handle, ctypes.byref(mount_id), 0)
    )
    return _checked(_libc.open_by_handle_at(directory, handle, flags | os.O_CLOEXEC))


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
    syscall(_FILE_SETATTR, at_fdcwd, os.fsencode(path) + b"\0", attributes, len(attributes), 0)


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

"""One operation through io_uring, or through the older AIO: raw, because no library is assumed.

A ring is made for a single operation and torn down with it. The one thread that fills it also
enters the kernel, and the system call orders its stores; nothing here needs barriers, except that
under SQPOLL the kernel's own thread picks the entry up, after the tail: on x86 stores keep their
order, and elsewhere io_uring_enter with SQ_WAKEUP follows.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from contextlib import ExitStack

from sealsvc.doctor import syscalls

FALLOCATE, OPENAT, READ, WRITE, FTRUNCATE = 17, 18, 22, 23, 55  # enum io_uring_op
SETUP_SQPOLL = 1 << 1
_SETUP, _ENTER = 425, 426  # the same numbers on every architecture
_GETEVENTS, _SQ_WAKEUP = 1 << 0, 1 << 1
_SQES_AT = 0x10000000  # IORING_OFF_SQES
_SQE = "<BBHiQQIIQHHiQQ"
_AIO_PWRITE = 1


class Entry:
    """A submission queue entry; what is not named is 0."""

    def __init__(
        self, opcode: int, fd: int, *, off: int = 0, addr: int = 0, length: int = 0, flags: int = 0
    ) -> None:
        self.packed = struct.pack(
            _SQE, opcode, 0, 0, fd, off, addr, length, flags, 1, 0, 0, 0, 0, 0
        )


def open_path(path: str, flags: int) -> int:
    """openat(2) through a ring; returns a descriptor."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    at_fdcwd = -100
    return submit(Entry(OPENAT, at_fdcwd, addr=ctypes.addressof(name), flags=flags))


def _map(stack: ExitStack, ring: int, size: int, offset: int) -> mmap.mmap:
    mapping = mmap.mmap(ring, size, mmap.MAP_SHARED, offset=offset)
    stack.callback(mapping.close)
    return mapping


def submit(entry: Entry, setup: int = 0) -> int:
    """Submit, wait, and return the result; a negative one is raised as OSError."""
    with ExitStack() as stack:
        parameters = bytearray(120)
        struct.pack_into("<IIII", parameters, 0, 1, 0, setup, 0)
        held = (ctypes.c_char * 120).from_buffer(parameters)
        ring = syscalls.syscall(_SETUP, 1, held)
        stack.callback(os.close, ring)
        sq = struct.unpack_from("<9I", parameters, 40)
        cq = struct.unpack_from("<9I", parameters, 80)
        entries, cq_entries = struct.unpack_from("<II", parameters, 0)
        size = max(sq[6] + 4 * entries, cq[5] + 16 * cq_entries)
        rings = _map(stack, ring, size, 0)  # IORING_FEAT_SINGLE_MMAP, since v5.4
        sqes = _map(stack, ring, 64 * entries, _SQES_AT)
        sqes[:64] = entry.packed
        struct.pack_into("<I", rings, sq[6], 0)
        struct.pack_into("<I", rings, sq[1], 1)
        syscalls.syscall(_ENTER, ring, 1, 1, _GETEVENTS | _SQ_WAKEUP, 0, 0)
        result: int = struct.unpack_from("<Qi", rings, cq[5])[1]
    return _raised(result)


def _raised(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def aio_write(fd: int, buffer: mmap.mmap, offset: int, flags: int) -> int:
    """One write through io_submit(2); `flags` are RWF_*."""
    setup, submit_number, getevents = syscalls.aio_numbers()
    c_char, c_ulong = ctypes.c_char, ctypes.c_ulong
    context = c_ulong(0)
    syscalls.syscall(setup, 1, ctypes.addressof(context))
    iocb = struct.pack(
        "<QIiHhIQQqQII",
        *(0, 0, flags, _AIO_PWRITE, 0, fd, syscalls.address(buffer), len(buffer), offset, 0, 0, 0),
    )
    control = (c_char * 64).from_buffer_copy(iocb)
    pointer = c_ulong(ctypes.addressof(control))
    syscalls.syscall(submit_number, context.value, 1, ctypes.addressof(pointer))
    event = (c_char * 32)()
    syscalls.syscall(getevents, context.value, 1, 1, event, 0)
    result: int = struct.unpack_from("<q", event, 16)[0]
    return _raised(result)

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
from sealsvc.linux import libc

NOP, FALLOCATE, OPENAT, READ, WRITE, MADVISE = 0, 17, 18, 22, 23, 25  # enum io_uring_op
OPENAT2, FTRUNCATE = 28, 55
LINK, ASYNC = 1 << 2, 1 << 4  # IOSQE_IO_LINK, IOSQE_ASYNC: a worker thread carries it out
SETUP_SQPOLL = 1 << 1
_SETUP, _ENTER = 425, 426  # the same numbers on every architecture
_GETEVENTS, _SQ_WAKEUP = 1 << 0, 1 << 1
_SQES_AT = 0x10000000  # IORING_OFF_SQES
_SQE = "<BBHiQQIIQHHiQQ"
_AIO_PWRITE = 1
_AT_FDCWD = -100


class Entry:
    """A submission queue entry; what is not named is 0. `flags` are those of the operation,
    `how` those of the entry (LINK, ASYNC)."""

    def __init__(
        self,
        opcode: int,
        fd: int,
        *,
        off: int = 0,
        addr: int = 0,
        length: int = 0,
        flags: int = 0,
        how: int = 0,
    ) -> None:
        self.packed = struct.pack(
            _SQE, opcode, how, 0, fd, off, addr, length, flags, 1, 0, 0, 0, 0, 0
        )


def open_path(path: str, flags: int) -> int:
    """openat(2) through a ring; returns a descriptor."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return submit(Entry(OPENAT, _AT_FDCWD, addr=ctypes.addressof(name), flags=flags))


def open_path_how(path: str, flags: int) -> int:
    """openat2(2) through a ring; returns a descriptor."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    how = ctypes.create_string_buffer(struct.pack("<QQQ", flags, 0, 0), 24)
    entry = Entry(
        OPENAT2,
        _AT_FDCWD,
        addr=ctypes.addressof(name),
        off=ctypes.addressof(how),
        length=24,
    )
    return submit(entry)


def _map(stack: ExitStack, ring: int, size: int, offset: int) -> mmap.mmap:
    mapping = mmap.mmap(ring, size, mmap.MAP_SHARED, offset=offset)
    stack.callback(mapping.close)
    return mapping


def submit(entry: Entry, setup: int = 0) -> int:
    """Submit, wait, and return the result; a negative one is raised as OSError."""
    return submit_all([entry], setup)


def submit_all(wanted: list[Entry], setup: int = 0) -> int:
    """Submit several entries at once, wait for all, and return the result of the last."""
    count = len(wanted)
    with ExitStack() as stack:
        parameters = bytearray(120)
        struct.pack_into("<IIII", parameters, 0, count, 0, setup, 0)
        held = (ctypes.c_char * 120).from_buffer(parameters)
        ring = libc.syscall("io_uring_setup", _SETUP, count, held)
        stack.callback(os.close, ring)
        sq = struct.unpack_from("<9I", parameters, 40)
        cq = struct.unpack_from("<9I", parameters, 80)
        entries, cq_entries = struct.unpack_from("<II", parameters, 0)
        size = max(sq[6] + 4 * entries, cq[5] + 16 * cq_entries)
        rings = _map(stack, ring, size, 0)  # IORING_FEAT_SINGLE_MMAP, since v5.4
        sqes = _map(stack, ring, 64 * entries, _SQES_AT)
        for index, entry in enumerate(wanted):
            sqes[64 * index : 64 * index + 64] = entry.packed
            struct.pack_into("<I", rings, sq[6] + 4 * index, index)
        struct.pack_into("<I", rings, sq[1], count)
        libc.syscall("io_uring_enter", _ENTER, ring, count, count, _GETEVENTS | _SQ_WAKEUP, 0, 0)
        result: int = struct.unpack_from("<Qi", rings, cq[5] + 16 * (count - 1))[1]
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
    libc.syscall("io_setup", setup, 1, ctypes.addressof(context))
    iocb = struct.pack(
        "<QIiHhIQQqQII",
        *(0, 0, flags, _AIO_PWRITE, 0, fd, syscalls.address(buffer), len(buffer), offset, 0, 0, 0),
    )
    control = (c_char * 64).from_buffer_copy(iocb)
    pointer = c_ulong(ctypes.addressof(control))
    libc.syscall("io_submit", submit_number, context.value, 1, ctypes.addressof(pointer))
    event = (c_char * 32)()
    libc.syscall("io_getevents", getevents, context.value, 1, 1, event, 0)
    result: int = struct.unpack_from("<q", event, 16)[0]
    return _raised(result)

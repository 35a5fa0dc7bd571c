"""Files for the C core to look at, and the ways in which others have hold of them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PAGE = 4096


def close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def inode(path: Path) -> tuple[int, int]:
    st = path.stat()
    return st.st_dev, st.st_ino


def raises(error: int) -> contextlib.AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {error}]"))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@contextmanager
def mapping(fd: int, offset: int = 0, kind: int = mmap.MAP_SHARED) -> Iterator[int]:
    """The address of 8 pages of the file. (mmap.mmap keeps a duplicate of the descriptor.)"""
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, 8 * PAGE, protection, kind, fd, offset)
    assert address != 2**64 - 1
    try:
        yield address
    finally:
        _libc.munmap(address, 8 * PAGE)


@contextmanager
def nobody(path: Path) -> Iterator[None]:
    yield


@contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mapped(path: Path, flags: int, kind: int = mmap.MAP_SHARED) -> Iterator[None]:
    """A mapping whose descriptor is closed."""
    with ExitStack() as stack:
        with descriptor(path, flags) as fd:
            stack.enter_context(mapping(fd, kind=kind))
        yield


@contextmanager
def in_flight(path: Path, flags: int) -> Iterator[None]:
    left, right = socket.socketpair()
    with left, right:
        with descriptor(path, flags) as fd:
            socket.send_fds(left, [b"x"], [fd])
        yield

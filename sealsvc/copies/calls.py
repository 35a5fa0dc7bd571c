"""The C side of copies (native/include/sealsvc/copy.h), typed. cffi releases the GIL."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sealsvc.linux.native import ffi, lib


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes from `source` in one file to `destination` in another; offsets in bytes."""

    source: int
    destination: int
    length: int

    @property
    def source_end(self) -> int:
        return self.source + self.length

    @property
    def destination_end(self) -> int:
        return self.destination + self.length

    def part(self, start: int, end: int) -> Span:
        """The bytes [start, end) of this span, counted from its beginning."""
        return Span(self.source + start, self.destination + start, end - start)


@dataclass(frozen=True, slots=True)
class Copied:
    """`bytes` from the start of the span are copied; `error` is the errno that ended it, or 0. No
    bytes and no error: the call returned 0."""

    bytes: int
    error: int = 0


def _copied(result: Any) -> Copied:
    return Copied(int(result.bytes), int(result.error))


def _arguments(source: int, destination: int, span: Span) -> Any:
    values = (source, destination, span.source, span.destination, span.length)
    return ffi.new("struct seal_copy *", values)


def plain(source: int, destination: int, span: Span) -> Copied:
    """pread(2) and pwrite(2), 1 MiB at a time."""
    return _copied(lib.seal_copy_plain(_arguments(source, destination, span)))


def copy_file_range(source: int, destination: int, span: Span) -> Copied:
    return _copied(lib.seal_copy_range(_arguments(source, destination, span)))


def clone(source: int, destination: int, span: Span) -> Copied:
    """FICLONERANGE: all or nothing."""
    return _copied(lib.seal_copy_clone(_arguments(source, destination, span)))


def dax(source: int, destination: int, span: Span) -> Copied:
    return _copied(lib.seal_copy_dax(_arguments(source, destination, span)))


def direct(source: int, destination: int, span: Span, block: int, depth: int) -> Copied:
    return _copied(lib.seal_copy_direct(_arguments(source, destination, span), block, depth))


def zeros(fd: int, offset: int, length: int) -> Copied:
    """Zeros written in place."""
    return _copied(lib.seal_copy_zeros(fd, offset, length))


def equal_bytes(source: int, destination: int, span: Span) -> int:
    """How many bytes from the start of the span are equal in both files. Raises OSError."""
    result = _copied(lib.seal_copy_compare(_arguments(source, destination, span)))
    if result.error:
        raise OSError(result.error, os.strerror(result.error), "pread")
    return result.bytes


def write_back(fd: int, offset: int, length: int) -> None:
    """Write dirty pages of the range, and wait. No promise of durability: see sync_file_range(2).
    Raises OSError."""
    result: int = lib.seal_write_back(fd, offset, length)
    if result < 0 and result != -errno.ESPIPE:
        raise OSError(-result, os.strerror(-result), "sync_file_range")


def drop_privileges() -> None:
    """Of the calling thread, and of those it starts: see native/copy/privileges.c. Raises
    OSError."""
    result: int = lib.seal_copy_drop_privileges()
    if result < 0:
        raise OSError(-result, os.strerror(-result), "capset")


def act_as(uid: int) -> None:
    """What this thread does to files from now on counts as done by `uid`. Raises OSError."""
    result: int = lib.seal_copy_act_as(uid)
    if result < 0:
        raise OSError(-result, os.strerror(-result), "setfsuid")


@contextmanager
def own_rights() -> Iterator[None]:
    """For opening what is the service's affair: devices and images."""
    was = int(lib.seal_copy_acts_as())
    act_as(os.geteuid())
    try:
        yield
    finally:
        act_as(was)

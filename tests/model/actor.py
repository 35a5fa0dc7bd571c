"""The process that does operations of the model to real files: `python -m tests.model.actor DIR`.

It reads pickled lists of operations from its input and answers each with the list of their results,
as world.py's. It is nobody's holder, so that seals meet it as they meet anybody.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sealsvc.doctor import syscalls
from tests.model.fiemap import places
from tests.model.operations import BLOCK, MOST
from tests.model.world import payload

# linux/fs.h, and fs/xfs/libxfs/xfs_fs.h (v6.10)
_FICLONERANGE, _FIDEDUPERANGE, _EXCHANGE_RANGE = 0x4020940D, 0xC0189436, 0x40285881


class Actor:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.open: dict[int, int] = {}

    def path(self, file: int) -> str:
        return f"{self.directory}/f{file}"

    def do(self, operation: tuple[Any, ...]) -> object:
        kind, *arguments = operation
        try:
            return _ACTS[kind](self, *arguments)
        except OSError as error:
            return -(error.errno or errno.EIO)

    @contextmanager
    def file(self, number: int, flags: int = 0) -> Iterator[int]:
        """The descriptor that is open, or one for this operation."""
        if number in self.open and not flags:
            yield self.open[number]
            return
        fd = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC | flags)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def mapped(self, number: int, offset: int, length: int) -> Iterator[tuple[mmap.mmap, int]]:
        start = offset // BLOCK * BLOCK
        with self.file(number) as fd, mmap.mmap(fd, offset + length - start, offset=start) as area:
            yield area, offset - start

    def keep_open(self, number: int) -> int:
        self.open[number] = os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC)
        return 0

    def close(self, number: int) -> int:
        os.close(self.open.pop(number))
        return 0

    def fsync(self, number: int) -> int:
        with self.file(number) as fd:
            os.fsync(fd)
        return 0

    def read(self, number: int, offset: int, length: int) -> bytes:
        with self.file(number) as fd:
            return os.pread(fd, length, offset)

    def mapped_read(self, number: int, offset: int, length: int) -> bytes:
        with self.file(number) as fd:
            length = min(length, os.fstat(fd).st_size - offset)
        with self.mapped(number, offset, length) as (area, at):
            return area[at : at + length]

    def write(self, number: int, offset: int, length: int, seed: int) -> int:
        with self.file(number) as fd:
            return os.pwrite(fd, payload(seed, length), offset)

    def append(self, number: int, _offset: int, length: int, seed: int) -> int:
        with self.file(number, os.O_APPEND) as fd:
            return os.write(fd, payload(seed, length))

    def direct_write(self, number: int, offset: int, length: int, seed: int) -> int:
        with self.file(number, os.O_DIRECT) as fd, syscalls.aligned(payload(seed, length)) as data:
            return os.pwritev(fd, [data], offset)

    def mapped_write(self, number: int, offset: int, length: int, seed: int) -> int:
        with self.file(number) as fd:
            length = min(length, os.fstat(fd).st_size - offset)
        with self.mapped(number, offset, length) as (area, at):
            area[at : at + length] = payload(seed, length)
        return length

    def truncate(self, number: int, size: int) -> int:
        os.truncate(self.open.get(number, self.path(number)), size)
        return 0

    def _fallocate(self, mode: int, number: int, offset: int, length: int) -> int:
        with self.file(number) as fd:
            syscalls.fallocate(fd, mode, offset, length)
        return 0

    def punch(self, *range: int) -> int:
        return self._fallocate(syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, *range)

    def zero(self, *range: int) -> int:
        return self._fallocate(syscalls.ZERO_RANGE, *range)

    def allocate(self, *range: int) -> int:
        return self._fallocate(0, *range)

    def collapse(self, *range: int) -> int:
        return self._fallocate(syscalls.COLLAPSE_RANGE, *range)

    def insert(self, *range: int) -> int:
        return self._fallocate(syscalls.INSERT_RANGE, *range)

    def unshare(self, *range: int) -> int:
        return self._fallocate(syscalls.UNSHARE_RANGE, *range)

    def clone(self, number: int, offset: int, length: int, source: int, other: int) -> int:
        with self.file(number) as to, self.file(source) as origin:
            request = struct.pack("<qQQQ", origin, other, length, offset)
            fcntl.ioctl(to, _FICLONERANGE, request)
        return 0

    def dedupe(self, number: int, offset: int, length: int, source: int, other: int) -> int:
        with self.file(number) as to, self.file(source) as origin:
            layout = "<QQHHIqQQiI"
            packed = struct.pack(layout, other, length, 1, 0, 0, to, offset, 0, 0, 0)
            request = bytearray(packed)
            fcntl.ioctl(origin, _FIDEDUPERANGE, request)
        (status,) = struct.unpack_from("<i", request, 48)
        if status:
            return -errno.EILSEQ if status > 0 else int(status)
        return 0

    def exchange(self, number: int, offset: int, length: int, source: int, other: int) -> int:
        with self.file(number) as to, self.file(source) as origin:
            request = struct.pack("<iIQQQQ", origin, 0, other, offset, length, 0)
            fcntl.ioctl(to, _EXCHANGE_RANGE, request)
        return 0

    def copy_range(self, number: int, offset: int, length: int, source: int, other: int) -> int:
        """The whole of it, however often the kernel stops short."""
        done = 0
        with self.file(number) as to, self.file(source) as origin:
            length = min(length, os.fstat(origin).st_size - other)  # it may be one file, and grow
            while done < length:
                n = os.copy_file_range(origin, to, length - done, other + done, offset + done)
                if not n:
                    break
                done += n
        return done

    def look(self, number: int) -> tuple[bytes, dict[int, int]]:
        """The whole content, and where its blocks are."""
        with self.file(number) as fd:
            return look(fd)


_ACTS: dict[str, Callable[..., object]] = {
    "read": Actor.read,
    "mapped-read": Actor.mapped_read,
    "write": Actor.write,
    "append": Actor.append,
    "mapped-write": Actor.mapped_write,
    "direct-write": Actor.direct_write,
    "truncate": Actor.truncate,
    "punch": Actor.punch,
    "zero": Actor.zero,
    "allocate": Actor.allocate,
    "collapse": Actor.collapse,
    "insert": Actor.insert,
    "fsync": Actor.fsync,
    "copy-range": Actor.copy_range,
    "open": Actor.keep_open,
    "close": Actor.close,
    "clone": Actor.clone,
    "dedupe": Actor.dedupe,
    "unshare": Actor.unshare,
    "exchange": Actor.exchange,
    "look": Actor.look,
}


def look(fd: int) -> tuple[bytes, dict[int, int]]:
    os.fsync(fd)
    return os.pread(fd, 2 * MOST, 0), places(fd, 0, 2 * MOST)


def main() -> None:
    actor = Actor(sys.argv[1])
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            operations = pickle.load(given)
        except EOFError:
            return
        pickle.dump([actor.do(operation) for operation in operations], answers)
        answers.flush()


if __name__ == "__main__":
    main()

"""Logs of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst, v6.18): what a
device was written, in the order in which it became durable, to be replayed to any point.

The log begins with a sector that tells how many entries there are and how large a sector is. Each
entry is one sector (its fields, and the text of a mark behind them), then the data that was
written. All numbers are little endian and, but for `data_len`, in sectors of that size.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0x6A736677736872
_VERSION = 1
_SUPER = struct.Struct("<QQQI")  # magic, version, nr_entries, sectorsize
_ENTRY = struct.Struct("<QQQQ")  # sector, nr_sectors, flags, data_len
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8  # of flags
_SECTOR = 512  # of device-mapper's tables
_END = "dm-log-writes-end"  # the mark that the kernel makes when the device is removed


class BadLog(Exception):
    """It is no log, or it ends before its last entry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """`length` bytes that were written at byte `offset` of the device; their data begins at byte
    `data` of the log. `mark` is the text of a mark."""

    offset: int
    length: int
    flags: int
    data: int
    mark: str = ""

    @property
    def durable(self) -> bool:
        """Did the device say, with it, that what came before is on its medium?"""
        return bool(self.flags & (FLUSH | FUA))


def entries(log: int) -> Iterator[Entry]:
    """Of an open log, in order. Raises BadLog."""
    magic, version, count, size = _SUPER.unpack(_exactly(log, _SUPER.size, 0))
    if (magic, version) != (_MAGIC, _VERSION) or size < _SECTOR or size & (size - 1):
        raise BadLog(f"no log of version {_VERSION}: magic {magic:#x}, version {version}")
    at = size
    for _ in range(count):
        sector, sectors, flags, length = _ENTRY.unpack(_exactly(log, _ENTRY.size, at))
        mark = ""
        if flags & MARK:
            mark = _exactly(log, length, at + _ENTRY.size).decode()
        entry = Entry(sector * size, sectors * size, flags, at + size, mark)
        yield entry
        at += size + (0 if flags & DISCARD else entry.length)


def replay(log: int, entry: Entry, device: int) -> None:
    """Write to an open device, or an image of it, what the entry says. What is discarded is zeroed:
    nobody may rely on what it held."""
    done = 0
    while done < entry.length:
        size = min(1 << 20, entry.length - done)
        zeros = entry.flags & DISCARD
        data = bytes(size) if zeros else _exactly(log, size, entry.data + done)
        os.pwrite(device, data, entry.offset + done)
        done += size


def _exactly(fd: int, size: int, offset: int) -> bytes:
    found = os.pread(fd, size, offset)
    if len(found) != size:
        raise BadLog(f"the log ends at byte {offset + len(found)}")
    return found


@dataclass(frozen=True, slots=True)
class Logged:
    """A device whose writes are logged."""

    name: str
    log: Path

    @property
    def path(self) -> Path:
        return Path("/dev/mapper") / self.name

    def mark(self, text: str) -> None:
        _run("dmsetup", "message", self.name, "0", "mark", text)


@contextmanager
def logged(device: Path, log: Path, name: str = "logged") -> Iterator[Logged]:
    """`device` with everything that is written to it logged to `log`, which is whole after the
    context: what was never flushed comes last."""
    _run("modprobe", "-a", "dm_mod", "dm_log_writes")
    size = int(_run("blockdev", "--getsz", device))
    table = f"0 {size} log-writes {device} {log}"
    _run("dmsetup", "create", "--noudevsync", name, "--table", table)
    _run("dmsetup", "mknodes")
    try:
        yield Logged(name, log)
    finally:
        _run("dmsetup", "remove", "--noudevsync", "--retry", name)


def is_end(entry: Entry) -> bool:
    return entry.mark == _END


def _run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout

"""The block devices below a file system: partitions, dm-linear, dm-striped, down to the leaves.

A device is its number as st_rdev has it. Offsets and lengths are bytes; sysfs and device-mapper
count in sectors of 512 bytes."""

from __future__ import annotations

import os
import subprocess
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512


class Unresolved(Exception):
    """Where a byte lies below cannot be told; the text says why."""


@dataclass(frozen=True, slots=True)
class Segment:
    device: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Target:
    """One line of a device-mapper table: bytes from `start` on. `legs` are (device, offset), one
    for linear; `chunk` is the stripe's size, or the whole length."""

    start: int
    length: int
    legs: tuple[tuple[int, int], ...]
    chunk: int

    def segment(self, offset: int, length: int) -> Segment:
        at = offset - self.start
        number, inside = divmod(at, self.chunk)
        row, leg = divmod(number, len(self.legs))
        device, base = self.legs[leg]
        part = min(length, self.chunk - inside, self.length - at)
        return Segment(device, base + row * self.chunk + inside, part)


class Stack:
    """Reads each device's table once: what is below a mounted file system stays, while its files
    are sealed, but for an operator's `dmsetup reload`, which docs/copies.md names."""

    def __init__(self) -> None:
        self._tables: dict[int, list[_Target]] = {}

    def first_segment(self, device: int, offset: int, length: int) -> Segment:
        """Where the range begins, and how far it goes on there. Raises Unresolved."""
        segment = Segment(device, offset, length)
        while table := self._table(segment.device):
            at = bisect_right([target.start for target in table], segment.offset) - 1
            if at < 0 or segment.offset >= table[at].start + table[at].length:
                raise Unresolved(f"{name_of(segment.device)} has no byte {segment.offset}")
            segment = table[at].segment(segment.offset, segment.length)
        return segment

    def leaves(self, device: int) -> set[int]:
        """Every device at the bottom. Raises Unresolved."""
        table = self._table(device)
        if not table:
            return {device}
        below = {leg for target in table for leg, _ in target.legs}
        return {leaf for leg in below for leaf in self.leaves(leg)}

    def _table(self, device: int) -> list[_Target]:
        if device not in self._tables:
            self._tables[device] = _read_table(device)
        return self._tables[device]


def sysfs_of(device: int) -> Path:
    """Raises Unresolved where the number is not a block device's (btrfs, NFS, tmpfs have such)."""
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not path.exists():
        raise Unresolved("its file system is not on one block device")
    return path.resolve()


def name_of(device: int) -> str:
    """The node's name below /dev."""
    for line in (sysfs_of(device) / "uevent").read_text().splitlines():
        if line.startswith("DEVNAME="):
            return line.removeprefix("DEVNAME=")
    return sysfs_of(device).name


def node_of(device: int) -> str:
    return f"/dev/{name_of(device)}"


def _read_table(device: int) -> list[_Target]:
    """Empty for a leaf."""
    sysfs = sysfs_of(device)
    if (sysfs / "partition").exists():
        start = int((sysfs / "start").read_text()) * SECTOR
        length = int((sysfs / "size").read_text()) * SECTOR
        major, minor = map(int, (sysfs.parent / "dev").read_text().split(":"))
        return [_Target(0, length, ((os.makedev(major, minor), start),), length)]
    if (sysfs / "dm").is_dir():
        return [_parsed(line) for line in _dm_table(device)]
    return []


def _dm_table(device: int) -> list[str]:
    numbers = ("-j", str(os.major(device)), "-m", str(os.minor(device)))
    try:
        done = subprocess.run(
            ("dmsetup", "table", *numbers), capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unresolved(f"dmsetup table {name_of(device)}: {error}") from None
    if done.returncode:
        raise Unresolved(f"dmsetup table {name_of(device)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def _parsed(line: str) -> _Target:
    """`START LENGTH linear DEV OFFSET`, `START LENGTH striped N CHUNK (DEV OFFSET)...`"""
    start, length, kind, *rest = line.split()
    first, size = int(start) * SECTOR, int(length) * SECTOR
    if kind == "linear":
        return _Target(first, size, (_leg(rest[0], rest[1]),), size)
    if kind == "striped":
        legs = tuple(_leg(rest[i], rest[i + 1]) for i in range(2, 2 + 2 * int(rest[0]), 2))
        return _Target(first, size, legs, int(rest[1]) * SECTOR)
    raise Unresolved(f"it is on device-mapper's {kind}, which is not followed")


def _leg(device: str, offset: str) -> tuple[int, int]:
    major, minor = map(int, device.split(":"))
    return os.makedev(major, minor), int(offset) * SECTOR

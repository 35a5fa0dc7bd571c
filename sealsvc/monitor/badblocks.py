"""Media errors: bad ranges of a device that lie under sealed files.

The kernel lists what it knows to be bad in sysfs: of a disk in `badblocks`, of persistent memory in
the region's too, which knows of an error before the disk does. Both count in sectors of 512 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sealsvc.core.extents import LENGTH, LOGICAL, PHYSICAL, ExtentMap
from sealsvc.core.model import ByteRange
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import native
from sealsvc.linux.host.pmem import SECTOR, Unknown, linear_below
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.workers import Workers

SYS = Path("/sys")
_FS_XFLAG_REALTIME = 0x1  # include/uapi/linux/fs.h


@dataclass(frozen=True, slots=True)
class Hit:
    """Bytes of a sealed file that lie on bad ones of the file system's device."""

    offset: int
    physical: int
    length: int


def parse(text: str) -> list[ByteRange]:
    """Of a badblocks file. Lines that are none are passed over: the kernel may cut the last."""
    found = []
    for line in text.splitlines():
        sector, _, count = line.partition(" ")
        if sector.isdigit() and count.strip().isdigit() and int(count):
            found.append(ByteRange(int(sector) * SECTOR, int(count) * SECTOR))
    return found


def hits(rows: ExtentMap, bad: Iterable[ByteRange]) -> list[Hit]:
    """In order of the device."""
    found = []
    for piece in bad:
        physical = rows[:, PHYSICAL]
        met = rows[(physical < piece.end) & (physical + rows[:, LENGTH] > piece.offset)]
        for row in met:
            start = max(int(row[PHYSICAL]), piece.offset)
            end = min(int(row[PHYSICAL]) + int(row[LENGTH]), piece.end)
            offset = int(row[LOGICAL]) + start - int(row[PHYSICAL])
            found.append(Hit(offset, start, end - start))
    return found


def bad_ranges(device: int, sys: Path = SYS) -> list[ByteRange]:
    """What is known to be bad of a block device, in its own bytes; empty when nothing can be."""
    try:
        disk, base = _disk(device, sys)
    except (OSError, ValueError, Unknown):
        return []
    found = _read(disk / "badblocks") + _of_region(disk)
    moved = [(piece.offset - base, piece.end - base) for piece in found]
    return _merged([(max(0, start), end) for start, end in moved if end > 0])


def _disk(device: int, sys: Path) -> tuple[Path, int]:
    """The disk below a device, and the byte of it where the device begins."""
    number = f"{os.major(device)}:{os.minor(device)}"
    where = (sys / "dev/block" / number).resolve(strict=True)
    if (where / "partition").exists():
        return where.parent, int((where / "start").read_text()) * SECTOR
    if (where / "dm").exists():
        below, offset = linear_below(device, where.name)
        disk, base = _disk(below, sys)
        return disk, base + offset
    return where, 0


def _of_region(disk: Path) -> list[ByteRange]:
    """Of the persistent memory that a disk lies in: counted from the region's first byte."""
    if not disk.name.startswith("pmem"):
        return []
    try:
        holder = (disk / "device").resolve(strict=True)
        start = int((holder.parent / "resource").read_text(), 16)
        base = int((holder / "resource").read_text(), 16) - start
    except (OSError, ValueError):
        return []
    bad = _read(holder.parent / "badblocks")
    return [
        ByteRange(max(piece.offset, base) - base, piece.end - max(piece.offset, base))
        for piece in bad
        if piece.end > base
    ]


def _read(path: Path) -> list[ByteRange]:
    try:
        return parse(path.read_text())
    except OSError:
        return []


def _merged(pieces: list[tuple[int, int]]) -> list[ByteRange]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(pieces):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return [ByteRange(start, end - start) for start, end in merged]


class BadBlocks:
    """Tells of each bad range under a seal once, and asks the seal back: its map has not moved, but
    what lies there cannot be had any more."""

    def __init__(
        self, recaller: Recaller, events: EventLog, workers: Workers, sys: Path = SYS
    ) -> None:
        self._recaller, self._events, self._workers, self._sys = recaller, events, workers, sys
        self._told: dict[str, set[Hit]] = {}

    async def look(self, seals: Iterable[Seal]) -> None:
        by_device: dict[int, list[Seal]] = {}
        for seal in seals:
            by_device.setdefault(seal.file.device, []).append(seal)
        live = {seal.id for found in by_device.values() for seal in found}
        self._told = {name: told for name, told in self._told.items() if name in live}
        for device, found in by_device.items():
            # The mapping from device to disk may have changed since the last look.
            bad = await self._workers.of("sysfs", 1).run(bad_ranges, device, self._sys)
            for seal in found if bad else ():
                if seal.live and not _elsewhere(seal):
                    self._tell(seal, bad)

    def _tell(self, seal: Seal, bad: list[ByteRange]) -> None:
        told = self._told.setdefault(seal.id, set())
        new = [hit for hit in hits(seal.map, bad) if hit not in told]
        told.update(new)
        for hit in new:
            self._events.publish(
                "alarm",
                seal.id,
                reason=f"seal {seal.id} of {seal.path}: media error at {hit.offset}: the device's"
                f" bytes {hit.physical} to {hit.physical + hit.length - 1} are bad",
                offset=hit.offset,
                physical=hit.physical,
                length=hit.length,
            )
        if new:
            self._recaller.recall(seal, f"media error at {new[0].offset}")


def _elsewhere(seal: Seal) -> bool:
    """Do its extents count from the beginning of another device?"""
    if "rtdev=" not in seal.filesystem.options:
        return False
    try:
        return bool(native.fsxattr(seal.hold.anchor).xflags & _FS_XFLAG_REALTIME)
    except OSError:
        return True

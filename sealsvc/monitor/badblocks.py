"""Media errors: bad ranges of a device that lie under sealed files.

The kernel lists known bad ranges in sysfs: those of a disk in its `badblocks`, those of persistent
memory also in `badblocks` of the region, which gets an error before the disk does. Both count in
sectors of 512 bytes.
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
    """Bytes of a sealed file that lie on a bad range. All in bytes: `offset` in the file,
    `physical` on the file system's device."""

    offset: int
    physical: int
    length: int


def parse(text: str) -> list[ByteRange]:
    """The ranges of a badblocks file, in bytes. Malformed lines are ignored, because the kernel may
    truncate the last one."""
    found = []
    for line in text.splitlines():
        sector, _, count = line.partition(" ")
        if sector.isdigit() and count.strip().isdigit() and int(count):
            found.append(ByteRange(int(sector) * SECTOR, int(count) * SECTOR))
    return found


def hits(rows: ExtentMap, bad: Iterable[ByteRange]) -> list[Hit]:
    """Where the extents of the (n, 4) map `rows` lie on the ranges `bad` (bytes of the device). In
    the order of `bad`."""
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
    """The known bad ranges of a block device (dev_t), in bytes from its start. Empty when the disk
    below it cannot be found."""
    try:
        disk, base = _disk(device, sys)
    except (OSError, ValueError, Unknown):
        return []
    found = _read(disk / "badblocks") + _of_region(disk)
    moved = [(piece.offset - base, piece.end - base) for piece in found]
    return _merged([(max(0, start), end) for start, end in moved if end > 0])


def _disk(device: int, sys: Path) -> tuple[Path, int]:
    """The sysfs directory of the disk below a device, and the byte of the disk where the device
    starts. Raises OSError, ValueError, or Unknown for a device-mapper table that is not linear."""
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
    """The bad ranges that the persistent memory region of a pmem disk lists, converted from bytes
    of the region to bytes of the disk."""
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
    """Raises an alarm for each bad range under a seal, once, and recalls the seal: its map has not
    changed, but the data there cannot be read any more."""

    def __init__(
        self, recaller: Recaller, events: EventLog, workers: Workers, sys: Path = SYS
    ) -> None:
        self._recaller, self._events, self._workers, self._sys = recaller, events, workers, sys
        self._told: dict[str, set[Hit]] = {}

    async def look(self, seals: Iterable[Seal]) -> None:
        """Compare the maps of the live seals with the bad ranges of their devices."""
        seals = list(seals)
        if self._told:
            live = {seal.id for seal in seals}
            self._told = {name: told for name, told in self._told.items() if name in live}
        for device in {seal.file.device for seal in seals}:
            # Read each time: the mapping from device to disk may have changed since the last call.
            bad = await self._workers.of("sysfs", 1).run(bad_ranges, device, self._sys)
            for seal in seals if bad else ():
                if seal.file.device == device and seal.live and not _elsewhere(seal):
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
    """Whether the seal's extents are on the realtime device of an XFS, which is not the device of
    its st_dev; True also when that cannot be determined."""
    if "rtdev=" not in seal.filesystem.options:
        return False
    try:
        return bool(native.fsxattr(seal.hold.anchor).xflags & _FS_XFLAG_REALTIME)
    except OSError:
        return True

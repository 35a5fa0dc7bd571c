"""Where the bytes of a sealed file are: its extents as places on block devices.

FIEMAP and the sealed map tell places on the device under the file system. Where that is itself
device-mapper and linear (LVM) they are followed down to the devices beneath.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Map
from sealsvc.exports.dm_ioctl import CONTROL, SECTOR, DeviceMapper, Target


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """`length` bytes of the file from `logical` on are at `physical` of the block device
    `device` (MAJOR:MINOR)."""

    logical: int
    physical: int
    length: int
    device: str


Tables = Callable[[int], list[Target] | None]


def table_of(number: int) -> list[Target] | None:
    """The device-mapper table of a block device; None when it has none."""
    if not (_sys(number) / "dm").is_dir() or not os.path.exists(CONTROL):
        return None
    with closing(DeviceMapper()) as mapper:
        return mapper.table(number)


def _sys(number: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def name_of(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def number_of(name: str) -> int:
    major, minor = name.split(":")
    return os.makedev(int(major), int(minor))


def pieces(map: Map, number: int, size: int, tables: Tables = table_of) -> list[Piece]:
    """The first `size` bytes of a file with this map, whose file system is on the device `number`,
    in the fewest pieces, in order. Refusal `export-failed` when a device is not linear."""
    found: list[Piece] = []
    for logical, physical, length in map:
        length = min(length, size - logical)
        if length > 0:
            for device, place, part in _down(number, physical, length, tables):
                _append(found, logical, place, part, name_of(device))
                logical += part
    return found


def _append(found: list[Piece], logical: int, physical: int, length: int, device: str) -> None:
    last = found[-1] if found else None
    if last and (last.device, last.physical + last.length) == (device, physical):
        logical, physical, length = last.logical, last.physical, last.length + length
        found.pop()
    found.append(Piece(logical=logical, physical=physical, length=length, device=device))


def _down(number: int, offset: int, length: int, tables: Tables) -> list[tuple[int, int, int]]:
    """(device, offset, length) in bytes, on devices that are no linear device-mapper ones."""
    table = tables(number)
    if table is None:
        return [(number, offset, length)]
    found: list[tuple[int, int, int]] = []
    for target in table:
        begin, end = target.start * SECTOR, (target.start + target.length) * SECTOR
        first, last = max(begin, offset), min(end, offset + length)
        if first >= last:
            continue
        if target.type != "linear":
            raise Refusal(
                "export-failed",
                f"device {name_of(number)} under the file system is a device-mapper {target.type}"
                " device: only linear ones can be followed to the devices beneath",
            )
        below, place = target.parameters.split()
        found += _down(number_of(below), int(place) * SECTOR + first - begin, last - first, tables)
    return found

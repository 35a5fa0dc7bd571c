"""Where a block device lies in physical memory, when it is persistent memory.

Through partitions and device-mapper devices of a single linear target; anything else cannot be told
by one number.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512

# include/uapi/linux/dm-ioctl.h
_DM_VERSION = (4, 0, 0)
_DM_TABLE_STATUS = 0xC138FD0C
_DM_STATUS_TABLE_FLAG = 1 << 4
_DM_BUFFER_FULL_FLAG = 1 << 8
_DM_IOCTL = struct.Struct("=3I II I i I I I Q 128s 129s 7x")
_DM_TARGET = struct.Struct("=QQiI16s")
_DM_ROOM = 16384


class Unknown(Exception):
    """The text says why the device has no known place in memory."""


def base_of(device: int) -> int:
    """The physical address of the first byte of the block device. Raises Unknown."""
    where = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        name = where.resolve(strict=True).name
        if (where / "partition").exists():
            disk = _number(where.resolve().parent / "dev")
            return base_of(disk) + int((where / "start").read_text()) * SECTOR
        if (where / "dm").exists():
            below, offset = linear_below(device, name)
            return base_of(below) + offset
        if not name.startswith("pmem"):
            raise Unknown(f"{name} is not persistent memory")
        # Of an fsdax namespace this is where its data begins, behind the page structures.
        return int((where / "device/resource").read_text(), 16)
    except (OSError, ValueError) as error:
        raise Unknown(f"device {os.major(device)}:{os.minor(device)}: {error}") from None


def region_of(device: int) -> tuple[int, int] | None:
    """The physical address and the length of the block device; None where that is not known."""
    try:
        start = base_of(device)
        size = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size")
        return start, int(size.read_text()) * SECTOR
    except (Unknown, OSError):
        return None


def _number(path: Path) -> int:
    return _device_of(path.read_text())


def _device_of(text: str) -> int:
    major, minor = text.split(":")
    return os.makedev(int(major), int(minor))


@dataclass(frozen=True, slots=True)
class DmTarget:
    """One line of a device-mapper device's table."""

    kind: str
    parameters: str

    def below(self) -> int:
        """Of a linear target: the device that it stands on."""
        return _device_of(self.parameters.split()[0])


def dm_targets(device: int) -> list[DmTarget]:
    """The table of a device-mapper device."""
    request = bytearray(_DM_ROOM)
    _DM_IOCTL.pack_into(
        request, 0, *_DM_VERSION, _DM_ROOM, _DM_IOCTL.size, 0, 0, _DM_STATUS_TABLE_FLAG, 0, 0,
        device, b"", b"",
    )  # fmt: skip
    control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _DM_TABLE_STATUS, request)
    finally:
        os.close(control)
    _, _, _, _, start, count, _, flags, *_ = _DM_IOCTL.unpack_from(request)
    if flags & _DM_BUFFER_FULL_FLAG:
        raise OSError(errno.E2BIG, "its table is longer than is read", "DM_TABLE_STATUS")
    found, at = [], start
    for _ in range(count):
        _, _, _, following, kind = _DM_TARGET.unpack_from(request, at)
        text = request[at + _DM_TARGET.size :].split(b"\0", 1)[0].decode()
        found.append(DmTarget(kind.rstrip(b"\0").decode(), text))
        at = start + following
    return found


def linear_below(device: int, name: str) -> tuple[int, int]:
    """The device that a device-mapper device stands on, and the byte of it where it begins."""
    targets = dm_targets(device)
    if len(targets) != 1:
        raise Unknown(f"{name} has {len(targets)} device-mapper targets, not one")
    if targets[0].kind != "linear":
        raise Unknown(f"{name} is device-mapper {targets[0].kind}, not linear")
    _, sector = targets[0].parameters.split()
    return targets[0].below(), int(sector) * SECTOR

"""What a SCSI disk itself says about blocks that could not be read: its sense data.

The block layer makes an errno of it, and keeps it to itself. So the blocks are read again, by
SG_IO with the disk's own checks asked for. Everything here blocks.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from sealsvc.core import extents
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange
from sealsvc.integrity import block_device
from sealsvc.linux.host import pmem
from sealsvc.protocol.integrity import PiSense

_SG_IO = 0x2285
_FROM_DEVICE = -3  # SG_DXFER_FROM_DEV
# struct sg_io_hdr of scsi/sg.h, 64 bits
_HEADER = struct.Struct("<iiBBHIQQQIIi4xQBBBBHHiII4x")
_SENSE_BYTES = 96
_PATIENCE = 30_000  # ms
_READ_16 = struct.Struct(">BBQIBB")  # SBC-4 5.16
_READ = 0x88
_RDPROTECT = 1 << 5  # guard, application and reference tag are checked
_STEP = 64 << 10  # bytes of data in one command
_TUPLE = 8  # bytes; with RDPROTECT a disk may send them behind each block
_SECTOR = 512
_FIXED, _DESCRIPTOR = (0x70, 0x71), (0x72, 0x73)  # SPC-5 4.4: response codes
_INFORMATION = 0  # of a sense data descriptor


@dataclass(frozen=True)
class Disk:
    """A SCSI disk: its device number, the bytes of one of its blocks, and the byte of it where the
    device begins that was asked about."""

    device: int
    block: int
    start: int


def disk_under(device: int) -> Disk | None:
    """None where the device is, or stands on, anything else, or where the disk takes no READ(16)
    with a check (T10 type 2)."""
    start = 0
    try:
        for _ in range(8):
            where = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
            if (where / "dm").exists():
                device, offset = pmem.linear_below(device, where.name)
                start += offset
            elif (where / "partition").exists():
                start += int((where / "start").read_text()) * _SECTOR
                device = _number(where.parent)
            else:
                break
        [scsi] = (where / "device/scsi_disk").iterdir()
        if (scsi / "protection_type").read_text().strip() == "2":
            return None
        block = int((where / "queue/logical_block_size").read_text())
        return Disk(device, block, start)
    except (OSError, ValueError, pmem.Unknown):
        return None


def _number(where: Path) -> int:
    major, minor = (where / "dev").read_text().split(":")
    return os.makedev(int(major), int(minor))


def of_file(device: int, map: ExtentMap, span: ByteRange) -> tuple[PiSense, ByteRange] | None:
    """What the disk says of the first of these bytes of a file that it does not give, and which
    block that is, where it tells (else the whole span); None: it gives them all, or is no SCSI
    disk. `map` is the file's, on the block device `device`."""
    disk = disk_under(device)
    if disk is None:
        return None
    fd = block_device.opened(disk.device, writable=False)
    try:
        for logical, physical, length, _ in extents.clip(map, span).tolist():
            found = _look(fd, disk, disk.start + physical, length)
            if found:
                sense, at = found
                if at < 0:
                    return sense, span
                return sense, ByteRange(logical + at - disk.start - physical, disk.block)
    finally:
        os.close(fd)
    return None


def _look(fd: int, disk: Disk, start: int, length: int) -> tuple[PiSense, int] | None:
    """The first sense in a range of the disk, and the byte that it names (-1: none)."""
    for at in range(start, start + length, _STEP):
        size = min(_STEP, start + length - at)
        data = read(fd, at // disk.block, size // disk.block, disk.block)
        if data and (found := parse(data)):
            sense, lba = found
            inside = at <= lba * disk.block < at + size
            return sense, lba * disk.block if inside else (at if size == disk.block else -1)
    return None


def read(fd: int, lba: int, blocks: int, size: int) -> bytes:
    """The sense data of a READ(16) of so many blocks of `size` bytes; empty when it went well.
    Raises OSError."""
    command = ctypes.create_string_buffer(_READ_16.pack(_READ, _RDPROTECT, lba, blocks, 0, 0), 16)
    sense = ctypes.create_string_buffer(_SENSE_BYTES)
    room = ctypes.create_string_buffer(blocks * (size + _TUPLE))
    header = bytearray(
        _HEADER.pack(
            ord("S"), _FROM_DEVICE, len(command), _SENSE_BYTES, 0, len(room),
            ctypes.addressof(room), ctypes.addressof(command), ctypes.addressof(sense),
            _PATIENCE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )
    )  # fmt: skip
    fcntl.ioctl(fd, _SG_IO, header)
    written = _HEADER.unpack(header)[16]
    return sense.raw[:written]


def parse(data: bytes) -> tuple[PiSense, int] | None:
    """Sense key, additional sense code and qualifier, and the block that they are about (-1: not
    told); None: it is no sense data. Fixed and descriptor format."""
    code = data[0] & 0x7F if data else 0
    if code in _FIXED and len(data) >= 14:
        lba = int.from_bytes(data[3:7], "big") if data[0] & 0x80 else -1
        return PiSense(key=data[2] & 0x0F, asc=data[12], ascq=data[13]), lba
    if code in _DESCRIPTOR and len(data) >= 8:
        return PiSense(key=data[1] & 0x0F, asc=data[2], ascq=data[3]), _information(data[8:])
    return None


def _information(descriptors: bytes) -> int:
    while len(descriptors) >= 2:
        kind, length = descriptors[0], descriptors[1] + 2
        if kind == _INFORMATION and len(descriptors) >= 12:
            return int.from_bytes(descriptors[4:12], "big") if descriptors[2] & 0x80 else -1
        descriptors = descriptors[length:]
    return -1

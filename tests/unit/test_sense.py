"""Sense data of SCSI disks, as SPC-5 4.4 has it."""

from __future__ import annotations

import pytest

from sealsvc.integrity.sense import parse
from sealsvc.protocol.integrity import PiSense

GUARD = PiSense(key=0x0B, asc=0x10, ascq=0x01)
MEDIUM = PiSense(key=0x03, asc=0x11, ascq=0x00)


def fixed(code: int, key: int, asc: int, ascq: int, information: int = 0) -> bytes:
    data = bytearray(18)
    data[0], data[2], data[7], data[12], data[13] = code, key, 10, asc, ascq
    data[3:7] = information.to_bytes(4, "big")
    return bytes(data)


def descriptor(key: int, asc: int, ascq: int, *descriptors: bytes) -> bytes:
    more = b"".join(descriptors)
    return bytes([0x72, key, asc, ascq, 0, 0, 0, len(more)]) + more


def information(lba: int, valid: int = 0x80) -> bytes:
    return bytes([0, 10, valid, 0]) + lba.to_bytes(8, "big")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (fixed(0xF0, 3, 0x11, 0, 0x1234), (MEDIUM, 0x1234)),
        (fixed(0x70, 3, 0x11, 0, 0x1234), (MEDIUM, -1)),  # the information is not valid
        (fixed(0xF0, 0xEB, 0x10, 1, 5), (GUARD, 5)),  # filemark and end-of-medium bits beside it
        (descriptor(0x0B, 0x10, 1), (GUARD, -1)),
        (
            descriptor(0x0B, 0x10, 1, bytes([2, 6]) + bytes(6), information(1 << 40)),
            (GUARD, 1 << 40),
        ),
        (descriptor(0x0B, 0x10, 1, information(7, valid=0)), (GUARD, -1)),
        (descriptor(0x0B, 0x10, 1, information(7)[:8]), (GUARD, -1)),
        (fixed(0x7F, 3, 0x11, 0), None),  # vendor specific
        (fixed(0x70, 3, 0x11, 0)[:13], None),
        (b"", None),
        (b"\x72", None),
    ],
)
def test_sense_is_read(data: bytes, found: tuple[PiSense, int] | None) -> None:
    assert parse(data) == found

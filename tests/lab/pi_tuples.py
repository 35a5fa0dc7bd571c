"""Tuples of protection information made in Python, by an implementation that is not ours."""

from __future__ import annotations

import struct

from crcmod import mkCrcFun

from sealsvc.protocol.pi_device import PiPathInfo

_CRC16 = mkCrcFun(0x18BB7, initCrc=0, rev=False)
_CRC64 = mkCrcFun(0x1AD93D23594C93659, initCrc=0, rev=True, xorOut=0xFFFFFFFFFFFFFFFF)


def _ip(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


GUARDS = {"crc16-t10dif": (_CRC16, 2), "ip": (_ip, 2), "crc64-nvme": (_CRC64, 8)}


def tuples(device: PiPathInfo, data: bytes, *, tag: int, reftag: int, bits: int = 64) -> bytearray:
    """One tuple for each interval of data, with the low bits of its reference tag. Metadata before
    the tuple is covered by its guard."""
    function, width = GUARDS[device.guard]
    made = bytearray()
    for number, at in enumerate(range(0, len(data), device.interval)):
        before = bytes(range(device.pi_offset))
        guard = function(data[at : at + device.interval] + before)
        low = (reftag + number) % (1 << bits)
        reference = (low if device.ref_size else 0).to_bytes(device.pi_size - width - 2, "big")
        whole = before + guard.to_bytes(width, "big") + tag.to_bytes(2, "big") + reference
        made += whole.ljust(device.metadata, b"\0")
    return made


def place_of(device: PiPathInfo, field: str, index: int) -> int:
    """The byte of all tuples where the last byte of a field stands."""
    width = GUARDS[device.guard][1]
    ends = {"checksum": width, "tag": width + 2, "reftag": device.pi_size}
    return index * device.metadata + device.pi_offset + ends[field] - 1

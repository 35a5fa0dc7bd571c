"""FIEMAP by itself: what the observer sees owes nothing to the service's code."""

from __future__ import annotations

import array
import fcntl
import struct

_FS_IOC_FIEMAP = 0xC020660B
_HEAD, _EXTENT, _ROOM = 32, 56, 64

_LAST = 1  # FIEMAP_EXTENT_LAST: says nothing of the extent itself

Map = tuple[tuple[int, int, int, int], ...]


def read(fd: int, start: int, length: int) -> Map:
    """(logical, physical, length, flags) of what is allocated, in bytes, cut to the range, with
    neighbours of equal flags joined."""
    found: list[tuple[int, int, int, int]] = []
    at, end = start, start + length
    while at < end:
        room = array.array("B", bytes(_HEAD + _EXTENT * _ROOM))
        struct.pack_into("=QQIII", room, 0, at, end - at, 0, 0, _ROOM)
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, room)
        (count,) = struct.unpack_from("=I", room, 20)
        for n in range(count):
            logical, physical, size, *_, flags = struct.unpack_from(
                "=QQQQQI", room, _HEAD + n * _EXTENT
            )
            low, high = max(logical, start), min(logical + size, end)
            if low >= high:
                continue
            piece = (low, physical + low - logical, high - low, flags & ~_LAST)
            if found and _follows(found[-1], piece):
                last = found.pop()
                piece = (last[0], last[1], last[2] + piece[2], piece[3])
            found.append(piece)
            at = max(at, logical + size)
        if count < _ROOM:
            break
    return tuple(found)


def _follows(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] + a[2] == b[0] and a[1] + a[2] == b[1] and a[3] == b[3]

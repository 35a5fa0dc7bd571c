"""Where a file's blocks are, read here and not by the code under test."""

from __future__ import annotations

import fcntl
import struct

from tests.model.operations import BLOCK

_FIEMAP, _ROWS = 0xC020660B, 128  # linux/fiemap.h
_LAST, _UNKNOWN, _DELALLOC, _UNWRITTEN = 0x1, 0x2, 0x4, 0x800


def places(fd: int, start: int, end: int) -> dict[int, int]:
    """Block number -> physical byte address, of written blocks in [start, end) bytes. What is not
    written back has no place yet: fsync first."""
    found: dict[int, int] = {}
    while start < end:
        request = bytearray(32 + 56 * _ROWS)
        struct.pack_into("<QQIIII", request, 0, start, end - start, 0, 0, _ROWS, 0)
        fcntl.ioctl(fd, _FIEMAP, request)
        (count,) = struct.unpack_from("<I", request, 20)
        flags = _LAST
        for row in range(count):
            logical, physical, length = struct.unpack_from("<QQQ", request, 32 + 56 * row)
            (flags,) = struct.unpack_from("<I", request, 32 + 56 * row + 40)
            if not flags & (_UNKNOWN | _DELALLOC | _UNWRITTEN):
                for at in range(max(start, logical), min(end, logical + length), BLOCK):
                    found[at // BLOCK] = physical + at - logical
            begun = logical + length
        if flags & _LAST or not count:
            break
        start = begun
    return found

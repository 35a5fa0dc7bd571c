"""What the doctor's tests need where the rest of the project is not built: FIEMAP by ioctl in
place of the native module, and loop-mounted file systems in place of tests/scratch.py."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy

import sealsvc
from sealsvc.model import ByteRange

_FIEMAP, _SYNC, _LAST, _COUNT = 0xC020660B, 1, 1, 1024
_IGNORED = 0x1 | 0x1000  # LAST and MERGED say nothing of where a block is
EXCHRANGE = 1 << 6  # XFS_SB_FEAT_INCOMPAT_EXCHRANGE: mkfs.xfs sets it since 6.10


def read_extents(fd: int, sealed: ByteRange | None, *, sync: bool) -> numpy.ndarray:
    """All extents (a few hundred at most) of a file of the tests."""
    buffer = bytearray(32 + 56 * _COUNT)
    struct.pack_into("<QQIIII", buffer, 0, 0, 2**64 - 1, _SYNC if sync else 0, 0, _COUNT, 0)
    fcntl.ioctl(fd, _FIEMAP, buffer)
    mapped = struct.unpack_from("<I", buffer, 20)[0]
    rows = [struct.unpack_from("<QQQQQI", buffer, 32 + 56 * i) for i in range(mapped)]
    return numpy.array([(r[0], r[1], r[2], r[5]) for r in rows], numpy.uint64).reshape(-1, 4)


def _clipped(rows: numpy.ndarray, sealed: ByteRange) -> list[tuple[int, int, int, int]]:
    """Pieces inside the range, neighbours that continue each other joined."""
    out: list[tuple[int, int, int, int]] = []
    for logical, physical, length, flags in ((int(v) for v in row) for row in rows):
        start, end = max(logical, sealed.offset), min(logical + length, sealed.end)
        if start >= end:
            continue
        piece = (start, physical + start - logical, end - start, flags & ~_IGNORED)
        if out and _continues(out[-1], piece):
            last = out.pop()
            piece = (last[0], last[1], last[2] + piece[2], piece[3])
        out.append(piece)
    return out


def _continues(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] + a[2] == b[0] and a[1] + a[2] == b[1] and a[3] == b[3]


def same(before: numpy.ndarray, after: numpy.ndarray, sealed: ByteRange) -> bool:
    return _clipped(before, sealed) == _clipped(after, sealed)


def install() -> None:
    """Put the stand-ins where the doctor looks, unless the real modules are there."""
    for name, members in (("native", [read_extents]), ("extents", [same])):
        try:
            import_module(f"sealsvc.{name}")
        except ImportError:
            module = types.ModuleType(f"sealsvc.{name}")
            for member in members:
                setattr(module, member.__name__, member)
            sys.modules[f"sealsvc.{name}"] = module
            setattr(sealsvc, name, module)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _allow_exchange(image: str) -> None:
    """mkfs.xfs of 6.1 knows nothing of it; the kernel needs only the bit."""
    found = _run("xfs_db", "-r", "-c", "sb 0", "-c", "print features_incompat", image)
    bits = int(found.split("=")[1], 16) | EXCHRANGE
    _run("xfs_db", "-x", "-c", "sb 0", "-c", f"write -d features_incompat {bits:#x}", image)


@contextmanager
def mounted(kind: str, size: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sealsvc-test-") as directory:
        image, point = os.path.join(directory, "image"), os.path.join(directory, "mnt")
        os.mkdir(point)
        with open(image, "xb") as file:
            file.truncate(size)
        _run(f"mkfs.{kind}", "-q", image)
        if kind == "xfs":
            _allow_exchange(image)
        _run("mount", "-o", "loop", image, point)
        try:
            yield Path(point)
        finally:
            _run("umount", point)

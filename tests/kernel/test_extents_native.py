"""Extent maps: every answer of the C core is compared with what somebody else says."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from held_files import (
    PAGE,
    raises,
)

from sealsvc.core import extents
from sealsvc.core.model import ByteRange
from sealsvc.linux import native

pytestmark = pytest.mark.kernel

KEEP_SIZE, PUNCH_HOLE = 0x1, 0x2
FIEMAP = 0xC020660B


def punched(path: Path, pairs: int) -> int:
    """A file of `pairs` written pages with a hole behind each."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    os.posix_fallocate(fd, 0, 2 * pairs * PAGE)
    os.pwrite(fd, b"x" * (2 * pairs * PAGE), 0)
    os.fsync(fd)
    for i in range(pairs):
        native.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, (2 * i + 1) * PAGE, PAGE)
    os.fsync(fd)
    return fd


def naive_map(fd: int) -> list[list[int]]:
    """One extent at a time."""
    rows: list[list[int]] = []
    at = 0
    while True:
        buffer = bytearray(struct.pack("<QQIIII", at, 2**64 - 1 - at, 0, 0, 1, 0) + bytes(56))
        fcntl.ioctl(fd, FIEMAP, buffer)
        if struct.unpack_from("<I", buffer, 20)[0] == 0:
            return rows
        logical, physical, length, _, _, flags = struct.unpack_from("<QQQQQI", buffer, 32)
        rows.append([logical, physical, length, flags])
        at = logical + length
        if flags & extents.EXTENT_LAST:
            return rows


def filefrag(path: Path) -> list[tuple[int, int, int]]:
    text = subprocess.run(
        ["filefrag", "-v", f"-b{PAGE}", path], check=True, capture_output=True, text=True
    ).stdout
    rows = re.findall(r"^ *\d+: +(\d+)\.\. *\d+: +(\d+)\.\. *\d+: +(\d+):", text, re.M)
    return [(int(lo) * PAGE, int(ph) * PAGE, int(ln) * PAGE) for lo, ph, ln in rows]


@pytest.mark.parametrize("pairs", [1, 511, 512, 513, 1700])
def test_maps_in_several_batches(fs: Path, pairs: int) -> None:
    path = fs / "punched"
    fd = punched(path, pairs)
    try:
        found = native.read_extents(fd, None)
        assert found.tolist() == naive_map(fd)
        assert [tuple(row[:3]) for row in found.tolist()] == filefrag(path)
        assert len(found) == pairs
        assert (found.dtype, found.flags.owndata or found.base is not None) == (np.uint64, True)
    finally:
        os.close(fd)
        path.unlink()


def test_a_range_gives_what_overlaps_it(fs: Path) -> None:
    path = fs / "punched"
    fd = punched(path, 1500)
    try:
        whole = native.read_extents(fd, None)
        for sealed in [
            ByteRange(0, PAGE),
            ByteRange(PAGE, PAGE),
            ByteRange(100 * PAGE + 5, 1),
            ByteRange(700 * PAGE, 1400 * PAGE),
            ByteRange(2900 * PAGE, 2**60),
        ]:
            part = native.read_extents(fd, sealed)
            assert extents.same(part, whole, sealed)
            assert len(part) == len(extents.clip(whole, sealed))
    finally:
        os.close(fd)
        path.unlink()


def test_sync_writes_delayed_blocks(path: Path, opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDWR | os.O_TRUNC)
    os.pwrite(fd, b"x" * PAGE, 0)
    before = native.read_extents(fd, None)
    assert before[0, extents.FLAGS] & np.uint64(extents.EXTENT_DELALLOC)
    after = native.read_extents(fd, None, sync=True)
    assert extents.unsuitable(after, ByteRange(0, PAGE)) == []


def test_an_empty_file_has_no_extents(opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDWR | os.O_TRUNC)
    assert native.read_extents(fd, None).shape == (0, 4)


def test_what_has_no_map(opened: Callable[[int], int]) -> None:
    left, right = os.pipe()
    with raises(errno.EOPNOTSUPP):
        native.read_extents(left, None)
    os.close(left)
    os.close(right)
    with raises(errno.EBADF):
        native.read_extents(left, None)


def test_a_map_that_changes_meanwhile_ends_and_does_not_overlap(fs: Path) -> None:
    path = fs / "restless"
    fd = punched(path, 3000)
    stop = threading.Event()
    chance = random.Random(7)

    def disturb() -> None:
        while not stop.is_set():
            at = chance.randrange(6000) * PAGE
            native.fallocate(fd, chance.choice([0, PUNCH_HOLE | KEEP_SIZE]), at, 3 * PAGE)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(100):
            found = native.read_extents(fd, None)
            ends = found[:, extents.LOGICAL] + found[:, extents.LENGTH]
            assert (ends[:-1] <= found[1:, extents.LOGICAL]).all()
            assert (found[:, extents.LENGTH] > 0).all()
    finally:
        stop.set()
        thread.join()
        os.close(fd)
        path.unlink()

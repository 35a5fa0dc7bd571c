"""The replayer reads logs as the kernel's documentation describes them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.lab.log_writes import DISCARD, FUA, MARK, BadLog, Entry, entries, replay

SIZE = 4096  # of a sector


def a_log(path: Path, count: int) -> Path:
    """A write of two sectors at the third, a mark, a discard of one, and a write with FUA."""
    parts = [
        (3, 2, 0, 0, b"", b"a" * SIZE + b"b" * SIZE),
        (0, 0, MARK, 4, b"here", b""),
        (1, 1, DISCARD, 0, b"", b""),
        (4, 1, FUA, 0, b"", b"c" * SIZE),
    ]
    out = struct.pack("<QQQI", 0x6A736677736872, 1, count, SIZE).ljust(SIZE, b"\0")
    for sector, sectors, flags, length, text, data in parts:
        head = struct.pack("<QQQQ", sector, sectors, flags, length) + text
        out += head.ljust(SIZE, b"\0") + data
    path.write_bytes(out)
    return path


def test_entries_and_what_they_leave(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * SIZE * 6)
    log, device = os.open(a_log(tmp_path / "log", 4), os.O_RDONLY), os.open(image, os.O_RDWR)
    try:
        found = list(entries(log))
        assert found == [
            Entry(3 * SIZE, 2 * SIZE, 0, 2 * SIZE),
            Entry(0, 0, MARK, 5 * SIZE, "here"),
            Entry(SIZE, SIZE, DISCARD, 6 * SIZE),
            Entry(4 * SIZE, SIZE, FUA, 7 * SIZE),
        ]
        assert [entry.durable for entry in found] == [False, False, False, True]
        for number, expected in enumerate((b"xxxabx", b"xxxabx", b"x\0xabx", b"x\0xacx")):
            replay(log, found[number], device)
            assert image.read_bytes()[::SIZE] == expected
    finally:
        os.close(log)
        os.close(device)


def test_what_is_no_log_and_what_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(SIZE))
    cut = a_log(tmp_path / "cut", 5)
    for wrong, why in ((path, "no log"), (cut, "the log ends")):
        fd = os.open(wrong, os.O_RDONLY)
        try:
            with pytest.raises(BadLog, match=why):
                list(entries(fd))
        finally:
            os.close(fd)

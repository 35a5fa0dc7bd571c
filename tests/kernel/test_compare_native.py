"""Maps compared natively, as an audit does: what is called the same is the same, row by row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from held_files import PAGE

from sealsvc.core import extents
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange
from sealsvc.linux import compare, native

pytestmark = pytest.mark.kernel

KEEP_SIZE, PUNCH_HOLE = 0x1, 0x2
PAGES, FILES = 8, 3


@pytest.fixture
def fds(fs: Path) -> Iterator[list[int]]:
    """Files of PAGES written pages each."""
    made = []
    for number in range(FILES):
        made.append(os.open(fs / f"compared-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
        os.pwrite(made[-1], os.urandom(PAGES * PAGE), 0)
        os.fsync(made[-1])
    yield made
    for fd in made:
        os.close(fd)


RANGES = [ByteRange(0, 2 * PAGE), ByteRange(3 * PAGE, PAGE)]  # of each file


class Recorded:
    """The maps of RANGES of each file, as they are now."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = [fd for fd in fds for _ in RANGES]
        self.ranges = RANGES * len(fds)
        self.inodes = [os.fstat(fd).st_ino for fd in self.fds]
        self.device = os.fstat(fds[0]).st_dev
        self.maps = [
            extents.clip(native.read_extents(fd, span), span)
            for fd, span in zip(self.fds, self.ranges, strict=True)
        ]

    def next_changed(self, start: int = 0) -> tuple[int, ExtentMap | None]:
        made = compare.Comparison(self.device, self.fds, self.inodes, self.ranges, self.maps)
        return made.next_changed(start)


def test_maps_that_stay_are_the_same(fds: list[int]) -> None:
    assert Recorded(fds).next_changed() == (FILES * len(RANGES), None)


def test_a_hole_in_a_range_is_found_and_in_no_other(fds: list[int]) -> None:
    recorded = Recorded(fds)
    native.fallocate(fds[1], PUNCH_HOLE | KEEP_SIZE, 3 * PAGE, PAGE)
    at, present = recorded.next_changed()
    assert at == 3
    assert present is not None
    assert extents.first_difference(recorded.maps[3], present, recorded.ranges[3])
    assert recorded.next_changed(at + 1) == (FILES * len(RANGES), None)


def test_a_hole_beside_the_ranges_changes_nothing_in_them(fds: list[int]) -> None:
    """FIEMAP reports whole extents, which are cut to the range."""
    recorded = Recorded(fds)
    native.fallocate(fds[1], PUNCH_HOLE | KEEP_SIZE, 2 * PAGE, PAGE)
    assert recorded.next_changed() == (FILES * len(RANGES), None)


@pytest.mark.parametrize("column", [extents.LOGICAL, extents.PHYSICAL, extents.LENGTH])
def test_each_column_counts(fds: list[int], column: int) -> None:
    recorded = Recorded(fds)
    recorded.maps[2] = recorded.maps[2].copy()
    recorded.maps[2][0, column] += np.uint64(PAGE)
    assert recorded.next_changed()[0] == 2


def test_flags_count_but_for_those_of_the_report(fds: list[int]) -> None:
    recorded = Recorded(fds)
    recorded.maps[2] = recorded.maps[2].copy()
    recorded.maps[2][0, extents.FLAGS] ^= np.uint64(extents.EXTENT_LAST | extents.EXTENT_MERGED)
    assert recorded.next_changed() == (FILES * len(RANGES), None)
    recorded.maps[2][0, extents.FLAGS] ^= np.uint64(extents.EXTENT_SHARED)
    assert recorded.next_changed()[0] == 2


def test_one_row_more_or_less_is_a_change(fds: list[int]) -> None:
    recorded = Recorded(fds)
    whole = recorded.maps[4]
    recorded.maps[4] = whole[:0]
    assert recorded.next_changed()[0] == 4
    recorded.maps[4] = np.concatenate([whole, whole])
    assert recorded.next_changed()[0] == 4


def test_a_descriptor_of_another_file_is_not_compared(fds: list[int]) -> None:
    """Its number was used again: what it has now says nothing of the sealed file."""
    recorded = Recorded(fds)
    recorded.inodes[2] = recorded.inodes[3] = recorded.inodes[0]
    assert recorded.next_changed() == (2, None)
    assert recorded.next_changed(3) == (3, None)
    assert recorded.next_changed(4) == (FILES * len(RANGES), None)


def test_a_closed_descriptor_stops_no_other(fds: list[int]) -> None:
    recorded = Recorded(fds)
    recorded.fds[2] = recorded.fds[3] = -1
    before = os.listdir("/proc/self/fd")
    assert recorded.next_changed() == (2, None)
    assert recorded.next_changed(4) == (FILES * len(RANGES), None)
    assert len(os.listdir("/proc/self/fd")) == len(before)

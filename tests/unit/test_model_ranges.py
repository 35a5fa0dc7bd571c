"""Ranges without other ranges."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sealsvc.core.model import ByteRange

RANGES = st.builds(ByteRange, st.integers(0, 30), st.integers(1, 12))


def bytes_of(ranges: list[ByteRange]) -> list[int]:
    return [byte for part in ranges for byte in range(part.offset, part.end)]


@given(RANGES, st.lists(RANGES, max_size=6))
def test_what_is_left_is_what_no_part_has(whole: ByteRange, parts: list[ByteRange]) -> None:
    left = whole.without_all(parts)
    taken = set(bytes_of(parts))
    assert bytes_of(left) == [byte for byte in bytes_of([whole]) if byte not in taken]
    assert all(a.end < b.offset for a, b in pairwise(left)), "in as few as can be"

"""How a map has changed agrees with looking at it byte by byte (blocks of one byte)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sealsvc.core import extents
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange
from sealsvc.registry import differences

FLAGS = (0, extents.EXTENT_LAST, extents.EXTENT_SHARED, extents.EXTENT_DELALLOC)


@st.composite
def maps(draw: st.DrawFn) -> ExtentMap:
    rows, at = [], 0
    for _ in range(draw(st.integers(0, 6))):
        at += draw(st.integers(0, 3))
        length = draw(st.integers(1, 5))
        rows.append([at, draw(st.integers(0, 40)), length, draw(st.sampled_from(FLAGS))])
        at += length
    return np.array(rows, dtype=np.uint64).reshape(-1, 4)


def bytes_of(map: ExtentMap, span: ByteRange) -> list[tuple[int, ...]]:
    found = []
    for at in range(span.offset, span.end):
        [*piece] = extents.normalise(extents.clip(map, ByteRange(at, 1))).tolist()
        found.append(tuple(piece[0][1:]) if piece else ())
    return found


@given(maps(), maps(), st.integers(0, 20), st.integers(1, 30))
def test_it_agrees_with_every_byte(a: ExtentMap, b: ExtentMap, offset: int, length: int) -> None:
    span = ByteRange(offset, length)
    pairs = zip(bytes_of(a, span), bytes_of(b, span), strict=True)
    wanted = {offset + at for at, (x, y) in enumerate(pairs) if x != y}
    found = differences.between("0" * 24, a, b, span, 100)
    told = [at for change in found.changes for at in range(change.range.offset, change.range.end)]
    assert (told, found.changed) == (sorted(wanted), len(wanted))
    assert found.total == len(found.changes)
    assert (found.total == 0) == extents.same(a, b, span)

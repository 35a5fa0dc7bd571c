"""The interval algebra, as tables and against a map that is kept block by block."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealsvc.core import extents
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange, Preparation

B = 4096
PLACELESS = (
    extents.EXTENT_UNKNOWN
    | extents.EXTENT_DELALLOC
    | extents.EXTENT_ENCODED
    | extents.EXTENT_INLINE
    | extents.EXTENT_TAIL
)
PASSING = extents.EXTENT_LAST | extents.EXTENT_MERGED
Row = tuple[int, int, int, int]


def make(*rows: Row) -> ExtentMap:
    """Rows in blocks (logical, physical, length) and flags."""
    table = [(lo * B, ph * B, ln * B, flags) for lo, ph, ln, flags in rows]
    return np.array(table, dtype=np.uint64).reshape(-1, 4)


def span(start: int, length: int) -> ByteRange:
    return ByteRange(start * B, length * B)


# The oracle: what every single block of a map holds.


def blocks(map: ExtentMap) -> dict[int, tuple[int, int]]:
    """Block of the file -> (place in bytes, flags that count)."""
    found = {}
    for lo, ph, ln, flags in map.tolist():
        for i in range(0, ln, B):
            place = ph if flags & PLACELESS else ph + i
            found[(lo + i) // B] = (place, flags & ~PASSING)
    return found


def within(map: ExtentMap, sealed: ByteRange) -> dict[int, tuple[int, int]]:
    return {b: at for b, at in blocks(map).items() if sealed.offset <= b * B < sealed.end}


def range_blocks(sealed: ByteRange) -> range:
    return range(sealed.offset // B, sealed.end // B)


FLAGS = st.sampled_from(
    [
        0,
        extents.EXTENT_LAST,
        extents.EXTENT_MERGED,
        extents.EXTENT_SHARED,
        extents.EXTENT_UNWRITTEN,
        extents.EXTENT_DELALLOC | extents.EXTENT_UNKNOWN,
        extents.EXTENT_ENCODED,
        extents.EXTENT_SHARED | extents.EXTENT_LAST,
        extents.EXTENT_INLINE | extents.EXTENT_NOT_ALIGNED,
        extents.EXTENT_NOT_ALIGNED,
    ]
)


@st.composite
def maps(draw: st.DrawFn) -> ExtentMap:
    """Few places and short gaps, so that neighbours often adjoin on both sides."""
    rows: list[Row] = []
    at = 0
    place = 100
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.sampled_from([0, 0, 0, 1, 3]))
        place = place if draw(st.booleans()) else draw(st.integers(1, 40))
        length, flags = draw(st.integers(1, 4)), draw(FLAGS)
        rows.append((at, 0 if flags & extents.EXTENT_DELALLOC else place, length, flags))
        at += length
        place += length
    return make(*rows)


SPANS = st.builds(span, st.integers(0, 24), st.integers(1, 24))


@st.composite
def resplit(draw: st.DrawFn, map: ExtentMap) -> ExtentMap:
    """The same map as another kernel might report it: split elsewhere, other passing flags."""
    rows = []
    for lo, ph, ln, flags in map.tolist():
        at = 0
        while at < ln:
            piece = B * draw(st.integers(1, (ln - at) // B))
            passing = draw(st.sampled_from([0, extents.EXTENT_LAST, extents.EXTENT_MERGED]))
            place = ph if flags & PLACELESS else ph + at
            rows.append((lo + at, place, piece, flags & ~PASSING | passing))
            at += piece
    return np.array(rows, dtype=np.uint64).reshape(-1, 4)


@given(maps(), SPANS)
def test_clip_keeps_exactly_the_blocks_of_the_span(map: ExtentMap, sealed: ByteRange) -> None:
    assert blocks(extents.clip(map, sealed)) == within(map, sealed)


@given(maps(), st.integers(0, 24 * B), st.integers(1, 24 * B))
def test_clip_cuts_at_bytes(map: ExtentMap, offset: int, length: int) -> None:
    part = extents.clip(map, ByteRange(offset, length))
    assert (part[:, 2] > 0).all()
    covered = sum(
        max(0, min(lo + ln, offset + length) - max(lo, offset)) for lo, _, ln, _ in map.tolist()
    )
    assert part[:, 2].sum() == covered


@given(maps())
def test_clip_leaves_its_argument_alone(map: ExtentMap) -> None:
    before = map.copy()
    extents.clip(map, ByteRange(B // 2, B))
    extents.normalise(map)
    assert np.array_equal(map, before)


@given(maps())
def test_normalise_keeps_every_block(map: ExtentMap) -> None:
    assert blocks(extents.normalise(map)) == blocks(map)


@given(st.data())
def test_normalise_does_not_see_how_the_kernel_splits(data: st.DataObject) -> None:
    map = data.draw(maps())
    again = data.draw(resplit(map))
    assert np.array_equal(extents.normalise(map), extents.normalise(again))


@given(maps())
def test_normalise_is_idempotent(map: ExtentMap) -> None:
    once = extents.normalise(map)
    assert np.array_equal(extents.normalise(once), once)


@given(maps(), SPANS)
def test_uncovered_are_the_blocks_without_an_extent(map: ExtentMap, sealed: ByteRange) -> None:
    holes = extents.uncovered(map, sealed)
    assert [b for hole in holes for b in range_blocks(hole)] == [
        b for b in range_blocks(sealed) if b not in blocks(map)
    ]
    assert all(a.end < b.offset for a, b in pairwise(holes))


@given(maps(), maps(), SPANS)
def test_same_is_equality_of_every_block(a: ExtentMap, b: ExtentMap, sealed: ByteRange) -> None:
    assert extents.same(a, b, sealed) == (within(a, sealed) == within(b, sealed))
    assert extents.same(a, a, sealed)


@given(st.data())
def test_first_difference_is_the_first_block_that_differs(data: st.DataObject) -> None:
    a = data.draw(maps())
    b = data.draw(st.one_of(maps(), st.just(a), one_row_changed(a)))
    sealed = data.draw(SPANS)
    x, y = within(a, sealed), within(b, sealed)
    differing = [i for i in range_blocks(sealed) if x.get(i) != y.get(i)]
    found = extents.first_difference(a, data.draw(resplit(b)), sealed)
    assert (found is None) == (not differing)
    if found:
        assert found.offset == differing[0] * B
        assert (found.expected == "a hole") == (differing[0] not in x)
        assert (found.found == "a hole") == (differing[0] not in y)
        assert found.expected != found.found


@st.composite
def one_row_changed(draw: st.DrawFn, map: ExtentMap) -> ExtentMap:
    changed = map.copy()
    if len(map):
        row = draw(st.integers(0, len(map) - 1))
        changed[row, draw(st.sampled_from([1, 3]))] = draw(st.sampled_from([0, 5 * B, 0x2000]))
    return changed


@given(maps(), SPANS)
def test_unsuitable_names_every_block_that_cannot_be_sealed(
    map: ExtentMap, sealed: ByteRange
) -> None:
    bad = extents.EXTENT_SHARED | extents.EXTENT_UNWRITTEN | extents.EXTENT_NOT_ALIGNED | PLACELESS
    held = within(map, sealed)
    expected = [b for b in range_blocks(sealed) if b not in held or held[b][1] & bad]
    found = extents.unsuitable(map, sealed)
    assert [b for piece in found for b in range_blocks(piece.range)] == expected
    for piece in found:
        for b in range_blocks(piece.range):
            names = extents.flag_names(held[b][1]) if b in held else ["hole"]
            assert piece.reason in names
    assert all(a.range.end < b.range.offset or a.reason != b.reason for a, b in pairwise(found))


@given(maps())
def test_fragmentation_adds_up(map: ExtentMap) -> None:
    found = extents.fragmentation(map)
    assert found.extents == len(map) == found.runs + found.contiguous
    assert found.mapped == map[:, 2].sum() == pytest.approx(found.mean * found.runs)
    assert found.largest <= found.mapped


@pytest.mark.parametrize(
    ("flags", "reason", "mended_by"),
    [
        (extents.EXTENT_UNWRITTEN, "unwritten", {Preparation.CONVERT}),
        (extents.EXTENT_SHARED, "shared", {Preparation.UNSHARE}),
        (extents.EXTENT_DELALLOC | extents.EXTENT_UNKNOWN, "delalloc", {Preparation.CONVERT}),
        (extents.EXTENT_SHARED | extents.EXTENT_UNWRITTEN, "unwritten", {Preparation.CONVERT}),
        (extents.EXTENT_INLINE | extents.EXTENT_NOT_ALIGNED, "inline", set()),
        (extents.EXTENT_TAIL | extents.EXTENT_NOT_ALIGNED, "inline", set()),
        (extents.EXTENT_ENCODED | extents.EXTENT_ENCRYPTED, "encoded", set()),
        (extents.EXTENT_ENCODED | extents.EXTENT_SHARED, "encoded", set()),
        (extents.EXTENT_UNKNOWN, "unknown", set()),
        (extents.EXTENT_NOT_ALIGNED, "not-aligned", set()),
    ],
)
def test_reasons_and_what_mends_them(flags: int, reason: str, mended_by: set[Preparation]) -> None:
    [piece] = extents.unsuitable(make((0, 9, 4, flags)), span(1, 2))
    assert (piece.range, piece.reason) == (span(1, 2), reason)
    assert {step for step in Preparation if step in piece.advice} == mended_by
    assert ("no preparation" in piece.advice) == (not mended_by)


def test_a_written_map_is_suitable() -> None:
    map = make((0, 9, 4, 0), (4, 90, 4, extents.EXTENT_LAST | extents.EXTENT_MERGED))
    assert extents.unsuitable(map, span(0, 8)) == []
    assert extents.uncovered(map, span(0, 8)) == []


def test_an_empty_map_is_one_hole() -> None:
    [piece] = extents.unsuitable(make(), span(3, 5))
    assert (piece.range, piece.reason) == (span(3, 5), "hole")
    assert "prepare=allocate,convert" in piece.advice
    assert extents.uncovered(make(), span(3, 5)) == [span(3, 5)]
    assert extents.fragmentation(make()).extents == 0


def test_a_difference_tells_both_places() -> None:
    expected = make((0, 10, 8, 0))
    moved = make((0, 10, 3, 0), (3, 50, 2, extents.EXTENT_SHARED), (5, 15, 3, 0))
    assert extents.first_difference(expected, moved, span(0, 8)) == extents.Difference(
        3 * B,
        f"{5 * B} bytes at device byte {13 * B}",
        f"{2 * B} bytes at device byte {50 * B} (shared)",
    )
    assert extents.first_difference(expected, moved, span(5, 3)) is None
    cut = extents.first_difference(expected, make((0, 10, 3, 0)), span(0, 8))
    assert cut is not None
    assert (cut.offset, cut.found) == (3 * B, "a hole")


def test_the_placeless_do_not_move_along() -> None:
    delayed = make((0, 0, 8, extents.EXTENT_DELALLOC | extents.EXTENT_UNKNOWN))
    assert extents.clip(delayed, span(4, 4)).tolist() == [[4 * B, 0, 4 * B, 6]]
    difference = extents.first_difference(delayed, make((0, 7, 8, 0)), span(4, 4))
    assert difference is not None
    assert difference.expected == f"{4 * B} bytes at no place (unknown, delalloc)"


def test_the_largest_offsets() -> None:
    end = 2**64 - 1
    map = np.array([[0, B, B, 0], [2**63 - B, 7 * B, B, 1]], dtype=np.uint64)
    whole = ByteRange(0, end)
    assert np.array_equal(extents.clip(map, whole), map)
    assert extents.uncovered(map, whole)[-1] == ByteRange(2**63, end - 2**63)


def test_every_flag_has_a_name() -> None:
    assert extents.flag_names(0x3F8F) == list(extents.FLAG_NAMES.values())
    assert extents.flag_names(0) == []
    assert extents.flag_names(0x40000 | extents.EXTENT_SHARED) == ["shared", "0x40000"]


def test_spans_of_rows_join_what_adjoins() -> None:
    rows = np.array(
        [[0, 0, 4096, 0], [4096, 1 << 20, 4096, 0], [16384, 8192, 8192, 0]], dtype=np.uint64
    )
    assert extents.spans(rows) == [ByteRange(0, 8192), ByteRange(16384, 8192)]
    assert extents.spans(rows[:0]) == []

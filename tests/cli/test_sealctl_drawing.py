from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sealsvc.cli.drawing import drawing, placement, strip
from sealsvc.cli.map import summarise
from sealsvc.protocol.seals import Extent


def extent(logical: int, physical: int, length: int, *flags: str) -> Extent:
    return Extent(logical=logical, physical=physical, length=length, flags=list(flags))


def glyphs(extents: list[Extent], size: int, width: int) -> str:
    return "".join(look[1] for look in strip(extents, size, width))


def test_boundaries_holes_and_flags_show() -> None:
    extents = [
        extent(0, 1000, 20),
        extent(20, 2000, 20),
        extent(60, 3000, 20, "unwritten"),
        extent(80, 4000, 20, "shared", "last"),
    ]
    assert glyphs(extents, 100, 10) == "##==..--SS"


def test_columns_of_several_extents_show() -> None:
    assert glyphs([extent(n, 10 * n, 1) for n in range(10)], 10, 5) == "|" * 5


def test_placement_tells_which_tenth_lies_where() -> None:
    assert placement([extent(0, 500, 100)], 100, 10) == "0123456789"
    assert placement([extent(0, 590, 10), extent(10, 500, 10)], 20, 10) == "5........0"
    assert placement([extent(0, 0, 10, "delalloc")], 10, 10) == ""


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 2**50)), max_size=30),
    st.integers(1, 120),
)
def test_every_map_can_be_drawn(parts: list[tuple[int, int, int]], width: int) -> None:
    extents, offset = [], 0
    for length, gap, physical in parts:
        extents.append(extent(offset + gap, physical, length))
        offset += gap + length
    size = max(offset, 1)
    assert len(strip(extents, size, width)) == width
    assert len(placement(extents, size, width)) in (0, width)
    assert drawing(extents, size, width, True).plain.isascii()


def test_summary() -> None:
    extents = [extent(0, 100, 10), extent(10, 110, 10, "unwritten"), extent(30, 130, 10)]
    found = summarise(extents, 35)
    assert (found.extents, found.runs, found.mapped, found.holes) == (3, 2, 30, 10)
    assert found.flags == {"unwritten": 1}

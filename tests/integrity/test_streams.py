"""The rule for overlapping PIs of a byte stream, against a model that paints bytes one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sealsvc.core.model import ByteRange
from sealsvc.integrity import streams
from sealsvc.integrity.store import BlockState
from sealsvc.integrity.streams import BEGINS, ENDS, PAGE, SUPERSEDED, Descriptor

SIZE = 3 * PAGE
RANGES = st.lists(
    st.tuples(st.integers(0, SIZE - 1), st.integers(1, PAGE * 2)).map(
        lambda pair: ByteRange(pair[0], min(pair[1], SIZE - pair[0]))
    ),
    min_size=1,
    max_size=12,
)


def put_all(ranges: list[ByteRange]):
    places = np.zeros((len(ranges), 3), np.uint64)
    states = np.full(len(ranges), BlockState.FREE, np.uint8)
    for block, new in enumerate(ranges):
        states = streams.supersede(places, states, new)
        places[block] = (new.offset, new.end, block + 1)
        states[block] = BlockState.CLEAN
    return places, states


@settings(max_examples=150, deadline=None)
@given(ranges=RANGES)
def test_each_byte_is_vouched_for_by_the_newest_pi_that_covers_it(ranges):
    places, states = put_all(ranges)
    newest = np.full(SIZE, -1)
    for block, put in enumerate(ranges):
        newest[put.offset : put.end] = block
    for offset in {0, SIZE - 1, *(r.offset for r in ranges), *(r.end - 1 for r in ranges)}:
        found = streams.winner(places, states, offset)
        if found is None:
            # All that covered it are gone, or none ever did.
            assert newest[offset] == -1
        else:
            assert newest[offset] == found
    for block, put in enumerate(ranges):
        mine = newest[put.offset : put.end] == block
        later = any(other.overlaps(put) for other in ranges[block + 1 :])
        if states[block] == BlockState.CLEAN:
            assert mine.all()
            assert not later
        elif states[block] == BlockState.FREE:
            assert not mine.any()
        else:
            assert states[block] == BlockState.SUPERSEDED
            assert later
    whole = ByteRange(0, SIZE)
    told = np.zeros(SIZE, bool)
    for part in streams.uncovered(places, states, whole):
        told[part.offset : part.end] = True
    clean = np.flatnonzero(states == BlockState.CLEAN)
    assert (told == ~np.isin(newest, clean)).all()


@settings(max_examples=100, deadline=None)
@given(ranges=RANGES, page=st.integers(0, 2))
def test_a_page_has_the_set_of_pis_that_cover_it_newest_first(ranges, page):
    places, states = put_all(ranges)
    found = streams.page_set(places, states, page, "NFS-FOO-NONSTANDARD", 36)
    low = page * PAGE
    expected = [
        block
        for block in reversed(range(len(ranges)))
        if states[block] != BlockState.FREE and ranges[block].overlaps(ByteRange(low, PAGE))
    ]
    assert [descriptor.buffer // 36 for descriptor in found] == expected
    for descriptor, block in zip(found, expected, strict=True):
        whole = ranges[block]
        assert descriptor.start == max(whole.offset, low) - low
        assert descriptor.end == min(whole.end, low + PAGE) - low
        assert bool(descriptor.flags & BEGINS) == (whole.offset >= low)
        assert bool(descriptor.flags & ENDS) == (whole.end <= low + PAGE)
        assert bool(descriptor.flags & SUPERSEDED) == (states[block] == BlockState.SUPERSEDED)


def test_the_descriptor_is_the_one_of_the_proposal():
    """struct { u16 start, end; int flags; void *buffer; char[16] pi_profile; }"""
    made = Descriptor(0, PAGE, BEGINS | ENDS, 0x1122, "sha256-stream")
    packed = made.pack()
    assert packed == bytes.fromhex("0000 0010 03000000 2211000000000000") + b"sha256-stream\0\0\0"
    assert Descriptor.unpack(packed) == made
    long = Descriptor(1, 2, 0, 0, "NFS-FOO-NONSTANDARD")
    assert Descriptor.unpack(long.pack()).profile == "NFS-FOO-NONSTAND"  # char[16] has no more room

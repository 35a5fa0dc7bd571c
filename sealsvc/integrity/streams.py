"""Byte streams: PIs of any range, which may overlap. Pure: tables in, tables out.

The rule for overlaps. Each byte is vouched for by the *newest* PI that covers it. A new PI takes
the place of each older one that it covers whole. An older one that it covers in part stays in the
set, superseded: it cannot be checked any more, because bytes under it may have been written since;
what of it no newer PI covers is vouched for by nothing, and is told as such, never as wrong. A page
has the set of all PIs that cover a byte of it, the newest first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sealsvc.core.model import ByteRange
from sealsvc.integrity.store import BlockState, Bytes

Places = npt.NDArray[np.uint64]  # (blocks, 3): start, end, age

PAGE = 4096  # bytes: of the descriptor's u16 start and end

# struct { u16 start, end; int flags; void *buffer; char pi_profile[16]; } of the proposal
_DESCRIPTOR = struct.Struct("<HHiQ16s")

BEGINS, ENDS, SUPERSEDED, SUSPECT, OPEN = 1, 2, 4, 8, 16  # flags


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A PI where it covers a page: bytes [start, end) of the page. `buffer` is where its tag lies
    in the store's array of tags. The proposal's 16 bytes have room for the first 16 of a profile's
    name, not for those of its own example. Flags: whether it begins, and ends, in this page, and
    the state of its block."""

    start: int
    end: int
    flags: int
    buffer: int
    profile: str

    def pack(self) -> bytes:
        return _DESCRIPTOR.pack(
            self.start, self.end, self.flags, self.buffer, self.profile.encode()[:16]
        )

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        start, end, flags, buffer, name = _DESCRIPTOR.unpack(data)
        return cls(start, end, flags, buffer, name.rstrip(b"\0").decode())


def in_use(states: Bytes) -> npt.NDArray[np.bool_]:
    return np.not_equal(states, BlockState.FREE)


def supersede(places: Places, states: Bytes, new: ByteRange) -> Bytes:
    """The states of the other blocks once a PI of `new` is there."""
    start, end = places[:, 0], places[:, 1]
    after = states.copy()
    met = in_use(states) & (start < new.end) & (end > new.offset)
    whole = met & (start >= new.offset) & (end <= new.end)
    after[met] = BlockState.SUPERSEDED
    after[whole] = BlockState.FREE
    return after


def page_set(
    places: Places, states: Bytes, page: int, profile: str, width: int
) -> list[Descriptor]:
    """Of page number `page` of the file, the newest first."""
    low, high = page * PAGE, (page + 1) * PAGE
    met = in_use(states) & (places[:, 0] < high) & (places[:, 1] > low)
    found = []
    for block in sorted(np.flatnonzero(met), key=lambda block: -int(places[block, 2])):
        start, end = int(places[block, 0]), int(places[block, 1])
        state = BlockState(states[block])
        flags = (BEGINS if start >= low else 0) | (ENDS if end <= high else 0)
        flags |= {
            BlockState.SUPERSEDED: SUPERSEDED,
            BlockState.SUSPECT: SUSPECT,
            BlockState.OPEN: OPEN,
        }.get(state, 0)
        place = int(block) * width
        found.append(Descriptor(max(start, low) - low, min(end, high) - low, flags, place, profile))
    return found


def winner(places: Places, states: Bytes, offset: int) -> int | None:
    """The block that vouches for a byte: the newest that covers it, unless that is superseded
    itself (elsewhere); None when nothing does."""
    met = in_use(states) & (places[:, 0] <= offset) & (places[:, 1] > offset)
    found = np.flatnonzero(met)
    return int(found[np.argmax(places[found, 2])]) if len(found) else None


def uncovered(places: Places, states: Bytes, whole: ByteRange) -> list[ByteRange]:
    """Bytes of the range that no PI vouches for."""
    vouching = in_use(states) & (states != BlockState.SUPERSEDED)
    return whole.without_all(
        ByteRange(int(start), int(end - start)) for start, end, _ in places[vouching]
    )

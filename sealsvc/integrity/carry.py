"""Tags of a copy's source for the destination's blocks: verified against the data that the
destination holds, and put where they belong there.

Everything here blocks. A block is clean in the destination only if each source block below it is
clean and its tag is true of the bytes that were read from the destination.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sealsvc.core.model import ByteRange
from sealsvc.integrity import engine
from sealsvc.integrity.check import Layout
from sealsvc.integrity.engine import Tags
from sealsvc.integrity.source import Source
from sealsvc.integrity.store import BlockState, Bytes
from sealsvc.integrity.streams import Places, in_use


@dataclass(frozen=True, slots=True)
class Given:
    """Tags (n, width) and states (n,) of source blocks from `first` on."""

    first: int
    tags: Tags
    states: Bytes


@dataclass(slots=True)
class Carried:
    """Of destination blocks: how many are clean, and how many are suspect. `differing` are source
    blocks, called clean there, whose tags are not true of the destination's bytes."""

    clean: int = 0
    suspect: int = 0
    differing: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Route:
    """Byte b of the source is byte b + `shift` of the destination. `span` are bytes of the
    destination: a copy of whole blocks of the source's attachment."""

    source: Layout
    there: Layout
    shift: int
    span: ByteRange

    @property
    def keeps_tags(self) -> bool:
        """Whether a tag is taken as it is, but for its reference tag. Else, once the source's tag
        is verified, another is generated from the same bytes."""
        mine, other = self.source.store.about, self.there.store.about
        size = self.source.profile.granularity
        return (
            self.source.profile == self.there.profile
            and (mine.tag, mine.storage, mine.secret) == (other.tag, other.storage, other.secret)
            and not (size and self.shift % size)
        )

    def blocks(self) -> tuple[int, int]:
        """(first, end) of the destination's blocks that lie inside of the span."""
        whole, size = self.there.store.about.range, self.there.profile.granularity
        met = whole.clipped(self.span)
        if met is None:
            return 0, 0
        first = -(-(met.offset - whole.offset) // size)
        return first, max(first, (met.end - whole.offset) // size)

    def below(self, first: int, count: int) -> tuple[int, int]:
        """(first, count) of the source's blocks below these of the destination."""
        size, step = self.source.profile.granularity, self.there.profile.granularity
        start = self.there.span(first).offset - self.shift - self.source.store.about.range.offset
        low = start // size
        return low, -(-(start + step * count) // size) - low


def given(layout: Layout, first: int, count: int) -> Given:
    """In the thread of the source's store."""
    return Given(first, layout.store.tags(first, count), layout.store.states(first, count))


def carry(route: Route, opened: Source, from_: Given, first: int, count: int) -> Carried:
    """Tags and states of `count` blocks of the destination. Raises OSError when they cannot be
    read: they stay suspect."""
    source, there = route.source, route.there
    size, step = source.profile.granularity, there.profile.granularity
    start = source.span(from_.first).offset + route.shift
    data = opened.read(start, size * len(from_.states))
    true = _true(source, data, from_)
    clean = from_.states == BlockState.CLEAN
    made = Carried(differing=[from_.first + int(at) for at in np.flatnonzero(clean & ~true)])
    lead = there.span(first).offset - start
    good = _all_below(clean & true, lead + step * np.arange(count + 1), size)
    mine = data[lead : lead + step * count]
    if route.keeps_tags:
        tags = _placed(there, mine, from_.tags, first)
    else:
        tags = there.make_tags(mine, first)
        tags[~good] = there.store.tags(first, count)[~good]
    states = np.where(good, BlockState.CLEAN, BlockState.SUSPECT).astype(np.uint8)
    there.store.write_tags(first, tags, states)
    made.clean, made.suspect = int(good.sum()), int((~good).sum())
    return made


def _true(layout: Layout, data: memoryview, from_: Given) -> npt.NDArray[np.bool_]:
    values = layout.values(from_.first, layout.prove)
    most = 64
    count, errors = engine.verify(layout.profile, data, from_.tags, values, most=most)
    if count > most:
        _, errors = engine.verify(layout.profile, data, from_.tags, values, most=count)
    true = np.ones(len(from_.states), bool)
    true[[error.block for error in errors]] = False
    return true


def _all_below(
    good: npt.NDArray[np.bool_], edges: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.bool_]:
    """Of stretches between edges (bytes): whether each block of `size` that one touches is good."""
    bad = np.concatenate(([0], np.cumsum(~good)))
    return np.equal(bad[-(-edges[1:] // size)], bad[edges[:-1] // size])


def _placed(there: Layout, data: memoryview, tags: Tags, first: int) -> Tags:
    """The same tags, with the reference tags of another place."""
    if there.profile.reftag not in ("blocknum", "sequence"):
        return tags
    fields = there.profile.mask_of(["reftag"])
    values = there.values(first, b"")
    return engine.generate(there.profile, data, values, fields=fields, tags=tags.copy())


def carry_stream(route: Route, opened: Source, from_: Given, places: Places) -> Carried:
    """The PIs that the copy has whole, the oldest first, so that their order stays."""
    made, store = Carried(), route.there.store
    used = np.flatnonzero(in_use(from_.states))
    for block in sorted(used, key=lambda block: int(places[block, 2])):
        start, end = int(places[block, 0]) + route.shift, int(places[block, 1]) + route.shift
        if start < route.span.offset or end > route.span.end:
            continue
        one = Given(int(block), from_.tags[block : block + 1], from_.states[block : block + 1])
        state = BlockState(from_.states[block])
        if (
            state is BlockState.CLEAN
            and not _true(route.source, opened.read(start, end - start), one).all()
        ):
            made.differing.append(int(block))
            state = BlockState.SUSPECT
        if state is BlockState.OPEN:
            state = BlockState.SUSPECT
        store.put(int(block), start, end, one.tags[0])
        store.mark(int(block), np.array([state], np.uint8))
        made.clean += state is BlockState.CLEAN
        made.suspect += state is BlockState.SUSPECT
    return made


def restore(layout: Layout, opened: Source, first: int, was_clean: npt.NDArray[np.bool_]) -> int:
    """Blocks that a copy was to write, and did not, or not to its end: clean again where they were
    and their tags are true of them. How many are suspect."""
    size = layout.profile.granularity
    data = opened.read(layout.span(first).offset, size * len(was_clean))
    now = given(layout, first, len(was_clean))
    back = was_clean & (now.states == BlockState.SUSPECT) & _true(layout, data, now)
    now.states[back] = BlockState.CLEAN
    layout.store.mark(first, now.states)
    return int((now.states == BlockState.SUSPECT).sum())

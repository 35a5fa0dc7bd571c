"""Comparing data with its tags, and making tags: what an attachment's thread does.

Everything here blocks. What a difference means is not decided here: that depends on who may have
written meanwhile (verdict.py).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import LENGTH, LOGICAL, PHYSICAL
from sealsvc.core.model import ByteRange
from sealsvc.integrity import engine, streams
from sealsvc.integrity.engine import Tags, Values
from sealsvc.integrity.profiles import Profile
from sealsvc.integrity.source import Source
from sealsvc.integrity.store import STRETCH, About, BlockState, Bytes, TagStore
from sealsvc.linux import native

Parts: TypeAlias = list[tuple[int, int]]  # blocks: the first, and how many

PART = STRETCH  # bytes of data that are compared in one piece, at most (but one block at least)


@dataclass(frozen=True, slots=True)
class Finding:
    """One field of one block. `stable` is false when the block's data was another at a second look;
    `number` is the errno of data that cannot be read (0: it can)."""

    block: int
    span: ByteRange
    state: BlockState
    field: str = ""
    expected: bytes = b""
    found: bytes = b""
    stable: bool = True
    number: int = 0
    physical: int | None = None


@dataclass(slots=True)
class Comparison:
    """Of blocks [first, first + count): how many were found right, open, or vouched for by nothing,
    and what was found of the others. `changed` is the file's change time before the data was
    read."""

    first: int
    count: int
    changed: int = 0
    good: int = 0
    open: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the blocks of an attachment lie. `keys` are the private (or secret) and the public half
    of a key."""

    profile: Profile
    store: TagStore
    make: bytes = b""
    prove: bytes = b""

    @property
    def is_stream(self) -> bool:
        return not self.profile.granularity

    def span(self, block: int) -> ByteRange:
        if self.is_stream:
            start, end, _ = self.store.places()[block]
            return ByteRange(int(start), int(end - start))
        size = self.profile.granularity
        return ByteRange(self.store.about.range.offset + block * size, size)

    def parts(self, wanted: ByteRange | None = None, size: int = PART) -> Iterator[tuple[int, int]]:
        """(first, count) of blocks that touch the range, in pieces of `size` bytes: a multiple of
        STRETCH."""
        whole = self.store.about.range
        if self.is_stream:
            for block, (start, end, _) in enumerate(self.store.places()):
                span = (int(start), int(end))
                if span[1] and (
                    wanted is None or (span[0] < wanted.end and wanted.offset < span[1])
                ):
                    yield block, 1
            return
        met = whole if wanted is None else whole.clipped(wanted)
        if met is None:
            return
        granule = self.profile.granularity
        first = (met.offset - whole.offset) // granule
        end = -(-(met.end - whole.offset) // granule)
        step = max(1, size // granule)
        # Parts begin at multiples of their size, so that they are whole stretches.
        while first < end:
            count = min(step - first % step, end - first)
            yield first, count
            first += count

    def stretch(self, block: int) -> int:
        return block if self.is_stream else block * self.profile.granularity // STRETCH

    def values(self, block: int, key: bytes) -> Values:
        """Of the first block of a call: blocks are numbered from the beginning of the file."""
        about, size = self.store.about, self.profile.granularity
        number = block if self.is_stream else about.range.offset // size + block
        return values_at(self.profile, about, number, key)

    def make_tags(self, data: memoryview, block: int) -> Tags:
        return engine.generate(self.profile, data, self.values(block, self.make))


def values_at(profile: Profile, about: About, number: int, key: bytes) -> Values:
    """Of a call that begins at block `number`. A reference tag that is one value in each block is
    0: it must not depend on where a call begins."""
    reftag = 0 if profile.reftag == "constant" else number
    return Values(number, reftag, about.tag, about.storage, key)


def _runs(wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """(first, count) of each stretch that is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], wanted.astype(np.int8), [0]))))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(end - start)


def compare(layout: Layout, source: Source, first: int, count: int) -> Comparison:
    """Open blocks are passed over: their tags say nothing."""
    states = layout.store.states(first, count)
    made = Comparison(first, count, source.changed)
    made.open = int((states == BlockState.OPEN).sum())
    checked = (states == BlockState.CLEAN) | (states == BlockState.SUSPECT)
    step = max(1, PART // (layout.profile.granularity or PART))
    for start, length in _runs(checked):
        for at in range(start, start + length, step):
            end = min(at + step, start + length)
            _compare_run(layout, source, made, first + at, states[at:end])
    return made


def _span(layout: Layout, first: int, count: int) -> ByteRange:
    one = layout.span(first)
    return ByteRange(one.offset, one.length * count)


def _compare_run(
    layout: Layout, source: Source, made: Comparison, first: int, states: Bytes
) -> None:
    span = _span(layout, first, len(states))
    try:
        data = source.look(span.offset, span.length)
    except OSError as error:
        _read_singly(layout, source, made, first, states, error)
        return
    differing = _differing(layout, data, first, len(states))
    for index, errors in differing.items():
        made.findings += _told(layout, source, data, first, index, states[index], errors)
    good = np.ones(len(states), bool)
    good[list(differing)] = False
    suspect = states == BlockState.SUSPECT
    made.good += int((good & ~suspect).sum())
    for at in np.flatnonzero(good & suspect):
        block = first + int(at)
        made.findings.append(Finding(block, layout.span(block), BlockState.SUSPECT))


def _differing(
    layout: Layout, data: memoryview, first: int, count: int
) -> dict[int, list[engine.TagError]]:
    tags, values = layout.store.tags(first, count), layout.values(first, layout.prove)
    found, errors = engine.verify(layout.profile, data, tags, values)
    if found > len(errors):
        _, errors = engine.verify(layout.profile, data, tags, values, most=found)
    differing: dict[int, list[engine.TagError]] = {}
    for error in errors:
        differing.setdefault(error.block, []).append(error)
    return differing


def _told(
    layout: Layout,
    source: Source,
    data: memoryview,
    first: int,
    index: int,
    state: int,
    errors: list[engine.TagError],
) -> Iterator[Finding]:
    """A block that differs is read again: is it at rest?"""
    span = layout.span(first + index)
    start = span.offset - layout.span(first).offset
    try:
        stable = source.read(span.offset, span.length) == data[start : start + span.length]
    except OSError:
        stable = False
    for error in errors:
        yield Finding(
            first + index,
            span,
            BlockState(state),
            error.field,
            error.expected,
            error.found,
            stable,
            physical=_physical(source, span.offset),
        )


def _physical(source: Source, offset: int) -> int | None:
    """Where a byte of the file lies on the file system's device."""
    try:
        rows = native.read_extents(source.fd, ByteRange(offset, 1))
    except OSError:
        return None
    for row in rows:
        if int(row[LOGICAL]) <= offset < int(row[LOGICAL]) + int(row[LENGTH]):
            return int(row[PHYSICAL]) + offset - int(row[LOGICAL])
    return None


def _read_singly(
    layout: Layout,
    source: Source,
    made: Comparison,
    first: int,
    states: Bytes,
    error: OSError,
) -> None:
    """Which of several blocks is it that cannot be read?"""
    if len(states) > 1 and error.errno in (errno.EIO, errno.EILSEQ, errno.ENODATA):
        for index in range(len(states)):
            _compare_run(layout, source, made, first + index, states[index : index + 1])
        return
    if len(states) > 1 or error.errno not in (errno.EIO, errno.EILSEQ, errno.ENODATA):
        raise error
    span = layout.span(first)
    where = _physical(source, span.offset)
    made.findings.append(
        Finding(
            first,
            span,
            BlockState(states[0]),
            number=error.errno or errno.EIO,
            physical=where,
        )
    )


def settle(layout: Layout, first: int, states: Bytes) -> None:
    """The states of blocks after a comparison; a whole stretch of clean ones was found good."""
    layout.store.mark(first, states)
    step = max(1, STRETCH // (layout.profile.granularity or STRETCH))
    clean = [
        layout.stretch(first + at)
        for at in range(0, len(states), step)
        if (states[at : at + step] == BlockState.CLEAN).all()
    ]
    if clean:
        layout.store.found_good(clean)


def tag(layout: Layout, source: Source, first: int, count: int, was: BlockState) -> int:
    """New tags for blocks that are `was`; how many."""
    return tag_all(layout, source, [(first, count)], was)


def tag_all(layout: Layout, source: Source, parts: Parts, was: BlockState) -> int:
    """The same for several parts, in order."""
    runs: list[tuple[int, Bytes, Bytes]] = []
    for first, count in parts:
        for start, length in _runs(layout.store.states(first, count) == was):
            span = _span(layout, first + start, length)
            data = source.look(span.offset, span.length)
            tags = layout.make_tags(data, first + start)
            runs.append((first + start, tags, np.full(length, BlockState.CLEAN, np.uint8)))
    layout.store.write_runs(runs)
    return sum(len(tags) for _, tags, _ in runs)


def add(layout: Layout, source: Source, wanted: ByteRange) -> None:
    """Of a byte stream: a PI of this range, by the rule of streams.py."""
    store = layout.store
    states = store.states(0, store.blocks)
    free = np.flatnonzero(states == BlockState.FREE)
    if not len(free):
        raise Refusal("limit-reached", f"a byte stream has {store.blocks} PIs at most")
    block = int(free[0])
    data = source.read(wanted.offset, wanted.length)
    store.put(block, wanted.offset, wanted.end, layout.make_tags(data, block)[0])
    states[block] = BlockState.FREE  # not one of those that are superseded
    states = streams.supersede(store.places(), states, wanted)
    states[block] = BlockState.CLEAN
    store.mark(0, states)

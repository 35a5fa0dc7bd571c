"""Tags that travel with copies, and stay true of a file that is relocated.

Before a copy, the blocks of the destination that have tags and will be written are marked suspect.
Afterwards the source's tags are compared with what the destination holds, and put there: into the
attachment that is there, or into a new one, all of whose blocks are suspect at first. So whoever is
killed in between leaves suspect blocks, never clean ones with data that nobody verified.
"""

from __future__ import annotations

import functools
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sealsvc.copies.tags import SEAL_TAG, CopiedRange
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId
from sealsvc.integrity import carry
from sealsvc.integrity.attachment import Attachment, Tally
from sealsvc.integrity.attachments import Attachments
from sealsvc.integrity.carry import Carried, Given, Route
from sealsvc.integrity.check import Finding, Layout
from sealsvc.integrity.source import Source
from sealsvc.integrity.store import STREAM_BLOCKS, About, BlockState, Bytes
from sealsvc.runtime import faults
from sealsvc.runtime.limits import Asked

_PART = 16 << 20  # bytes of the destination that are read in one piece


@dataclass(slots=True)
class AttachmentCopy:
    """One attachment of the source, and the attachment in the destination (None: to be made) that
    its tags go to. `was` are the states of the destination's blocks before, from `first` on."""

    source: Attachment
    there: Attachment | None
    span: ByteRange
    first: int = 0
    was: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))


@dataclass(slots=True)
class TagCopy:
    """Of one copy: `asked` are bytes of the source, `file` is the destination."""

    asked: ByteRange
    shift: int
    file: FileId
    path: str
    asker: Asked
    legs: list[AttachmentCopy]


class Travel:
    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments

    # A copy

    async def begin(self, way: CopiedRange, path: str, asker: Asked) -> TagCopy | None:
        """Before anything is written. None: the source has no tags there. `path` is the
        destination's; what is made counts to the share of `asker`, whose user owns it."""
        source, there, asked, shift = way.source, way.there, way.asked, way.shift
        legs = []
        for attachment in self._attachments.of_file(source, asked):
            span = _whole(attachment.layout, asked, shift)
            if span is None:
                continue
            met = self._attachments.of_file(there, span)
            legs += [AttachmentCopy(attachment, other, span) for other in met]
            if not met:
                legs.append(AttachmentCopy(attachment, None, span))
        if not legs:
            return None
        journey = TagCopy(asked, shift, there, path, asker, legs)
        for leg in legs:
            if leg.there is not None and not _unlike(leg.source, leg.there):
                leg.there.accounted[SEAL_TAG] += 1
                await _mark(leg, leg.there, shift)
        faults.point("integrity:travel-marked")
        return journey

    async def finish(
        self, journey: TagCopy, done: Sequence[ByteRange], *, whole: bool
    ) -> list[dict[str, Any]]:
        """After the copy, of which the ranges `done` (bytes of the source) are there; `whole`: all
        that was asked for. What became of the tags, for the result."""
        faults.point("integrity:travel-copied")
        told = []
        for leg in journey.legs:
            row: dict[str, Any] = {
                "source": leg.source.id,
                "profile": leg.source.layout.profile.name,
                "attachment": leg.there.id if leg.there else None,
            }
            try:
                row |= await self._leg(journey, leg, done, whole=whole)
            except (Refusal, OSError) as error:
                row["error"] = str(error)
            told.append(row)
        for leg in journey.legs:
            if leg.there is not None and leg.there.accounted[SEAL_TAG]:
                leg.there.accounted[SEAL_TAG] -= 1
        faults.point("integrity:travelled")
        return told

    async def _leg(
        self, journey: TagCopy, leg: AttachmentCopy, done: Sequence[ByteRange], *, whole: bool
    ) -> dict[str, Any]:
        new = leg.there is None
        if leg.there is None:
            if not whole:
                raise Refusal("try-later", "the copy is not whole: tags travel when it is resumed")
            leg.there = await self._made(journey, leg)
        elif why := _unlike(leg.source, leg.there):
            raise Refusal("already-attached", why)
        there, carried = leg.there, Carried()
        for part in [leg.span] if whole else _inside(leg, done, journey.shift):
            route = Route(leg.source.layout, there.layout, journey.shift, part)
            await self._carry(leg.source, there, route, carried)
        if not whole:
            carried.suspect = await _restored(leg, there)
        await self._attachments.open_for_writers(there)
        route = Route(leg.source.layout, there.layout, journey.shift, leg.span)
        return {
            "attachment": there.id,
            "new": new,
            "range": msgspec.to_builtins(there.store.about.range),
            "kept": route.keeps_tags,
            "blocks": {"clean": carried.clean, "suspect": carried.suspect},
            "uncovered": journey.asked.length - leg.span.length,
        }

    async def _carry(
        self, source: Attachment, there: Attachment, route: Route, carried: Carried
    ) -> None:
        if there.layout.is_stream:
            given = await source.run(carry.given, source.layout, 0, source.store.blocks)
            places = await source.run(source.store.places)
            found = await there.with_source(
                lambda opened: carry.carry_stream(route, opened, given, places)
            )
            await _add(carried, found, source, there, route)
            return
        first, end = route.blocks()
        step = max(1, _PART // there.layout.profile.granularity)
        for at in range(first, end, step):
            count = min(step, end - at)
            given = await source.run(carry.given, source.layout, *route.below(at, count))
            work = functools.partial(_carried, route, given, at, count)
            await _add(carried, await there.with_source(work), source, there, route)

    async def _made(self, journey: TagCopy, leg: AttachmentCopy) -> Attachment:
        """An attachment of the destination, all suspect, and known to the service."""
        like, profile = leg.source.store.about, leg.source.layout.profile
        size = math.lcm(max(1, profile.granularity), max(1, profile.alignment))
        start = -(-leg.span.offset // size) * size
        end = leg.span.end // max(1, profile.granularity) * max(1, profile.granularity)
        if start >= end:
            raise Refusal("bad-request", f"no whole block of {size} bytes was copied")
        about = About(
            id=secrets.token_hex(8),
            file=journey.file,
            path=journey.path,
            profile=profile.described(),
            range=ByteRange(start, end - start),
            uncovered=0,
            tag=like.tag,
            storage=like.storage,
            secret=like.secret,
            writes=like.writes,
            at_grant=like.at_grant,
            owner=journey.asker[0],
            asked=journey.asker,
            made=time.time(),
        )
        with self._attachments.shares.one_more(journey.asker):
            return await self._attachments.adopt(about, _suspect(about, profile.width))

    # A relocation

    async def check(self, device: int, inode: int) -> list[dict[str, Any]]:
        """Each attachment of a file whose blocks are, or were, moved: compared, part by part. Tags
        belong to places of the file, which do not change; a block that was wrong stays wrong."""
        told = []
        for attachment in self._attachments.of_file(FileId(device, inode), None):
            try:
                tally: Tally = await attachment.verify("relocate", quiet=False)
                told.append({"attachment": attachment.id, "blocks": dict(+tally.blocks)})
            except (Refusal, OSError) as error:
                told.append({"attachment": attachment.id, "error": str(error)})
        return told


def _unlike(source: Attachment, there: Attachment) -> str:
    """Why tags of one cannot go into the other; "" when they can."""
    if not source.layout.is_stream and not there.layout.is_stream:
        return ""
    return f"{there.store.about.path} has the attachment {there.id} there; detach it first"


def _whole(layout: Layout, asked: ByteRange, shift: int) -> ByteRange | None:
    """Where the whole blocks of the attachment that a copy takes are in the destination."""
    met, whole = layout.store.about.range.clipped(asked), layout.store.about.range
    size = max(1, layout.profile.granularity)
    if met is None:
        return None
    start = whole.offset + -(-(met.offset - whole.offset) // size) * size
    end = whole.offset + (met.end - whole.offset) // size * size
    return ByteRange(start + shift, end - start) if start < end else None


def _inside(leg: AttachmentCopy, done: Sequence[ByteRange], shift: int) -> Iterator[ByteRange]:
    for part in done:
        span = _whole(leg.source.layout, part, shift)
        met = span.clipped(leg.span) if span is not None else None
        if met is not None:
            yield met


async def _mark(leg: AttachmentCopy, there: Attachment, shift: int) -> None:
    """What is going to be written is suspect until it was verified."""
    route = Route(leg.source.layout, there.layout, shift, leg.span)
    leg.first, end = route.blocks()

    def work() -> Bytes:
        was = there.store.states(leg.first, end - leg.first)
        there.store.mark(leg.first, np.full(len(was), BlockState.SUSPECT, np.uint8))
        return was

    leg.was = await there.in_turn(work)


async def _restored(leg: AttachmentCopy, there: Attachment) -> int:
    """A copy that is not whole: what it left as it was is clean again. How many are suspect."""
    step = max(1, _PART // there.layout.profile.granularity)
    clean: npt.NDArray[np.bool_] = leg.was == BlockState.CLEAN
    left = 0
    for at in range(0, len(clean), step):
        part = clean[at : at + step]
        left += await there.with_source(
            functools.partial(_restore, there.layout, leg.first + at, part)
        )
    return left


def _carried(route: Route, given: Given, first: int, count: int, opened: Source) -> Carried:
    return carry.carry(route, opened, given, first, count)


def _restore(layout: Layout, first: int, clean: npt.NDArray[np.bool_], opened: Source) -> int:
    return carry.restore(layout, opened, first, clean)


async def _add(
    carried: Carried, found: Carried, source: Attachment, there: Attachment, route: Route
) -> None:
    """Counts, and errors: of the source, where its own data differs; else of the destination."""
    carried.clean += found.clean
    carried.suspect += found.suspect
    if not found.differing:
        return
    tally = Tally()
    low, high = min(found.differing), max(found.differing)
    if source.layout.is_stream:
        for block in found.differing:
            await source.verify_part(tally, "copy", block, 1)
    else:
        for first, count in source.layout.parts(_between(source.layout, low, high)):
            await source.verify_part(tally, "copy", first, count)
    states = await source.run(source.store.states, low, high + 1 - low)
    for block in found.differing:
        if states[block - low] == BlockState.CLEAN:
            span = source.layout.span(block)
            span = ByteRange(span.offset + route.shift, span.length)
            at = block if there.layout.is_stream else _block_at(there.layout, span.offset)
            finding = Finding(at, span, BlockState.SUSPECT, "checksum")
            await there.tell([there.error(finding, "changed", "copy", None)])


def _between(layout: Layout, low: int, high: int) -> ByteRange:
    return layout.span(low).hull(layout.span(high))


def _block_at(layout: Layout, offset: int) -> int:
    about = layout.store.about
    block = (offset - about.range.offset) // layout.profile.granularity
    return min(max(0, block), layout.store.blocks - 1)


def _suspect(about: About, width: int) -> Iterator[tuple[Bytes, Bytes]]:
    """Tags and states of a store that nothing was carried to yet."""
    size = int(about.profile["granularity"])
    left = about.range.length // size if size else STREAM_BLOCKS
    state = BlockState.SUSPECT if size else BlockState.FREE
    while left:
        count = min(left, 1 << 16)
        yield np.zeros((count, width), np.uint8), np.full(count, state, np.uint8)
        left -= count

"""Scrubs: a verification in the background, slowly, that goes on where it stopped.

With a cycle it reads only what is due. A stretch is passed over if all of its blocks are clean,
it was compared within the cycle and since it was last tagged, and nobody can have written to the
file since by a way that changes its ctime, nor holds a seal to write. What changes on the medium
alone changes no ctime: that is found when the cycle is over, and not before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.model import IoMode
from sealsvc.integrity.attachment import Attachment, Tally
from sealsvc.integrity.check import Layout, Parts
from sealsvc.integrity.source import Source
from sealsvc.integrity.store import STRETCH, BlockState, TagStore
from sealsvc.runtime import clock

_SAVED = 8  # parts after which its place is saved
_PART = 8 << 20  # bytes that are read between two rests, at most


@dataclass(frozen=True, slots=True)
class Pace:
    """At most `rate` bytes in a second (0: as fast as it goes). What was compared less than `cycle`
    seconds ago may be passed over (0: nothing is)."""

    rate: int
    cycle: float = 0.0

    @property
    def part(self) -> int:
        """Bytes of one part: eight in a second, but whole stretches."""
        return max(STRETCH, min(_PART, self.rate // 8 if self.rate else _PART) // STRETCH * STRETCH)


async def begin(attachment: Attachment, *, restart: bool) -> int:
    """The block to begin at."""
    store = attachment.store
    first = 0 if restart else max(0, store.about.scrub)
    if not first:
        attachment.scrub_errors = attachment.scrub_skipped = 0
        await attachment.run(lambda: store.save(scrub=0, scrub_started=time.time()))
    return first


async def run(
    attachment: Attachment,
    first: int,
    pace: Pace,
    alarm: Callable[[Attachment, Tally, str], None],
) -> None:
    """From block `first` on. Its place is kept in the store: the next goes on where one was ended,
    alone or with the service."""
    store, tally = attachment.store, Tally()
    due = clock.now()
    at = first
    try:
        parts = [part for part in await _due(attachment, pace) if part[0] >= first]
        for number, (start, count) in enumerate(parts):
            await attachment.verify_part(tally, "scrub", start, count)
            at, attachment.scrub_errors = start + count, len(tally.errors)
            if number % _SAVED == 0:
                await attachment.run(lambda at=at: store.save(scrub=at))
            if pace.rate:
                size = attachment.layout.span(start).length * count
                due = max(due, clock.now() - 1.0) + size / pace.rate
                await asyncio.sleep(max(0.0, due - clock.now()))
        at = -1
        # What was passed over was compared at an earlier change time of the file.
        if not first and not attachment.scrub_skipped:
            await attachment.all_compared(tally)
    except Refusal:
        pass  # detached, or the file is gone: whoever asks again is told
    finally:
        if not attachment.gone:
            await asyncio.shield(attachment.run(_ended, store, at))
    alarm(attachment, tally, "scrub")


def _ended(store: TagStore, at: int) -> None:
    store.sync_good()
    store.save(scrub=at)


async def _due(attachment: Attachment, pace: Pace) -> Parts:
    """What is to be read."""
    everything = await attachment.parts(size=pace.part)
    if not pace.cycle:
        return everything
    before = _written_by_holders(attachment)
    parts, skipped = await attachment.with_source(
        lambda opened: due_parts(attachment.layout, opened, pace)
    )
    if before or _written_by_holders(attachment):
        return everything
    attachment.scrub_skipped = skipped
    return parts


def _written_by_holders(attachment: Attachment) -> bool:
    return any(seal.request.iomode is not IoMode.READ for seal in attachment.seals())


def due_parts(layout: Layout, opened: Source, pace: Pace) -> tuple[Parts, int]:
    """The parts that must be read, and how many bytes of data need not be."""
    store = layout.store
    if store.about.foreign or opened.changed != store.about.changed:
        return list(layout.parts(size=pace.part)), 0
    fresh = store.compared_since(time.time() - pace.cycle)
    clean = np.equal(store.states(0, store.blocks), BlockState.CLEAN)
    left: Parts = []
    skipped = 0
    for first, count in layout.parts():
        if fresh[layout.stretch(first)] and clean[first : first + count].all():
            skipped += layout.span(first).length * count
        else:
            left.append((first, count))
    return left if layout.is_stream else _joined(left, pace.part // layout.span(0).length), skipped


def _joined(parts: Parts, most: int) -> Parts:
    """Neighbours as one, of `most` blocks."""
    joined: Parts = []
    for first, count in parts:
        start, length = joined[-1] if joined else (-1, 0)
        if start + length == first and length + count <= most:
            joined[-1] = (start, length + count)
        else:
            joined.append((first, count))
    return joined


async def stop(attachment: Attachment) -> None:
    if attachment.scrub is not None and not attachment.scrub.done():
        attachment.scrub.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await attachment.scrub

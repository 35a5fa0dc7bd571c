"""Scrubs: a verification of everything in the background, slowly, that goes on where it stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from sealsvc import clock
from sealsvc.errors import Refusal
from sealsvc.integrity.attachment import Attachment, Tally

_SAVED = 64  # parts after which its place is saved


async def begin(attachment: Attachment, *, restart: bool) -> int:
    """The block to begin at."""
    store = attachment.store
    first = 0 if restart else max(0, store.about.scrub)
    if not first:
        attachment.scrub_errors = 0
        await attachment.run(lambda: store.save(scrub=0, scrub_started=time.time()))
    return first


async def run(
    attachment: Attachment,
    first: int,
    rate: int,
    alarm: Callable[[Attachment, Tally, str], None],
) -> None:
    """From block `first` on, at most `rate` bytes in a second (0: as fast as it goes). Its place is
    kept in the store: the next goes on where one was ended, alone or with the service."""
    store, tally = attachment.store, Tally()
    due = clock.now()
    at = first
    try:
        for number, (start, count) in enumerate(await attachment.parts()):
            if start < first:
                continue
            await attachment.verify_part(tally, "scrub", start, count)
            at, attachment.scrub_errors = start + count, len(tally.errors)
            if number % _SAVED == 0:
                await attachment.run(lambda at=at: store.save(scrub=at))
            if rate:
                size = attachment.layout.span(start).length * count
                due = max(due, clock.now() - 1.0) + size / rate
                await asyncio.sleep(max(0.0, due - clock.now()))
        at = -1
        if not first:
            await attachment.all_compared(tally)
    except Refusal:
        pass  # detached, or the file is gone: whoever asks again is told
    finally:
        if not attachment.gone:
            await asyncio.shield(attachment.run(lambda: store.save(scrub=at)))
    alarm(attachment, tally, "scrub")


async def stop(attachment: Attachment) -> None:
    if attachment.scrub is not None and not attachment.scrub.done():
        attachment.scrub.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await attachment.scrub

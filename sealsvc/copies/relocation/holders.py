"""What both ways of relocation need of those who use the file: their quiet, and a guard against
others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable

from sealsvc.copies.relocation.record import Record
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Kind, SealTerms
from sealsvc.enforce.base import Guard, Hold, Verdict
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.seals import Seal, new_token
from sealsvc.linux.host import Target
from sealsvc.runtime import clock
from sealsvc.runtime.flag import Flag

Events = list[asyncio.Event | Flag]


async def until_done(
    record: Record, seals: Iterable[Seal], events_of: Callable[[Seal], Events], undone: str
) -> None:
    """Wait until each seal is over, or one of its events is set. Raises Refusal `try-later` after
    the record's grace; `undone` says what the holder has not done: "did not return seal"."""
    deadline = clock.now() + record.grace
    for seal in seals:
        events = events_of(seal)
        while seal.live and not any(event.is_set() for event in events):
            if clock.now() >= deadline:
                holder = seal.process.holder
                raise Refusal(
                    "try-later",
                    f"process {holder.pid} ({holder.comm}) {undone} {seal.id}"
                    f" within {record.grace:g} s: the relocation is called off",
                    {"seal": seal.id, "pid": holder.pid},
                )
            await clock.within(deadline, *events)


def guarded(enforcers: EnforcerSet, target: Target, kind: Kind) -> Hold:
    """A guard of the service's own over the whole file, arming still. Raises Refusal:
    `enforcer-unavailable`, and for an exclusive one `file-in-use`."""
    whole = ByteRange(0, target.size).rounded(target.filesystem.block_size)
    chosen, why = enforcers.choose(target.filesystem, SealTerms(kind))
    if chosen is None:
        raise Refusal("enforcer-unavailable", "; ".join(why), {"enforcers": why})
    exclusive = kind is Kind.EXCLUSIVE
    return chosen.hold(target, Guard(new_token(), whole, os.getpid(), exclusive, Verdict.ARMING))

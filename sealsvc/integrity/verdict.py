"""What a difference between data and tags means. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from sealsvc.core.model import ByteRange, IoMode, Kind
from sealsvc.integrity.check import Finding
from sealsvc.integrity.store import BlockState
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.integrity import Writes


class PossibleWriters(IntEnum):
    """Who may have written to blocks that are not open, the worst last. STILL: nobody (an exclusive
    seal whose holder does not write). FREE: anybody by the ways that change the file's ctime, as
    no exclusive seal keeps others away. NOISY: a holder that has not said that it is quiet."""

    STILL = 0
    FREE = 1
    NOISY = 2


# The worst last.
VERDICTS = ("good", "open", "unstable", "suspect", "changed", "corrupt", "unreadable")
ERRORS = ("suspect", "changed", "corrupt", "unreadable")


def stance(
    seals: Iterable[Seal], span: ByteRange, writes: Writes, *, quiet: bool, proven: bool
) -> PossibleWriters:
    """From the live seals of the file. `quiet`: the holder says that it does not write; `proven`:
    it has nothing mapped, or not its descriptor yet. A holder that does not declare its writes
    may have written before it became quiet."""
    found = PossibleWriters.FREE
    for seal in seals:
        if not seal.effective.overlaps(span):
            continue
        told = quiet and writes is Writes.DECLARED
        if not (told or proven) and seal.request.iomode is not IoMode.READ:
            return PossibleWriters.NOISY
        if seal.request.kind is Kind.EXCLUSIVE:
            found = PossibleWriters.STILL
    return found


def kind_of(finding: Finding, stance: PossibleWriters, *, changed: bool, foreign: bool) -> str:
    """One of VERDICTS. `changed`: the file's ctime is not the one that its tags were made at;
    `foreign`: that was so already when the seal was granted."""
    if finding.number:
        return "unreadable"
    if finding.state is BlockState.SUSPECT:
        return "suspect"
    if not finding.stable or stance is PossibleWriters.NOISY:
        return "unstable"
    if foreign or (stance is PossibleWriters.FREE and changed):
        return "changed"
    return "corrupt"


def worst(kinds: Iterable[str]) -> str:
    return max(kinds, key=VERDICTS.index, default="good")

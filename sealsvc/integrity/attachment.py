"""One attachment on the event loop: its blocks, compared and tagged part by part in its thread.

For each part it is looked twice at who may have written, before and after: the worse counts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.integrity import check, source, verdict
from sealsvc.integrity.check import Comparison, Finding, Layout
from sealsvc.integrity.errors import ErrorLog, fitting
from sealsvc.integrity.store import BlockState
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.integrity import PiAttachment, PiError, PiProgress, PiReport

T = TypeVar("T")

_BATCH = 8 << 20  # bytes of data that are tagged in one go
_RECORDED = 1000  # errors of one check; more are only counted


@dataclass(slots=True)
class Tally:
    """What a check has found so far."""

    blocks: Counter[str] = field(default_factory=Counter)
    errors: list[PiError] = field(default_factory=list)
    way: str = ""
    changed: int = 0  # the file's change time, ns, before any of it was read


class Attachment:
    """`grants` opens files and keeps grants away from one while it is read: a descriptor of ours
    would be another user of the file to the proof that an exclusive seal needs."""

    def __init__(self, layout: Layout, grants: Grants, log: ErrorLog) -> None:
        self.layout, self.store = layout, layout.store
        self._grants, self._log = grants, log
        self._turn = asyncio.Lock()
        self.scrub: asyncio.Task[None] | None = None
        self.scrub_errors = self.scrub_skipped = 0
        self.gone = False
        # Tags of seals whose holders' writes are told otherwise, while those go on (travel.py).
        self.accounted: Counter[str] = Counter()

    @property
    def id(self) -> str:
        return self.store.about.id

    # Where it works

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """In its own thread: a disk that hangs keeps nobody else."""
        pool = self._grants.workers.of(("integrity", self.id), 1, is_background=True)
        return await pool.run(function, *arguments)

    def seals(self) -> list[Seal]:
        return [
            seal
            for seal in self._grants.machine.table.of_file(self.store.about.file)
            if seal.live and seal.effective.overlaps(self.store.about.range)
        ]

    def _open(self) -> int:
        about, host = self.store.about, self._grants.host
        target = host.open_path(about.path, self._grants.policy.roots, writable=False)
        if target.file != about.file:
            os.close(target.fd)
            raise Refusal(
                "no-such-file",
                f"{about.path} is another file by now: attachment {self.id} has tags of"
                f" {about.file}",
                {"path": about.path},
            )
        return target.fd

    async def with_source(self, work: Callable[[source.Source], T]) -> T:
        """What `work` makes of the file, in the thread. Meanwhile a grant of it waits. Whoever is
        cancelled leaves the thread to end by itself: the descriptor is the thread's."""
        async with self._turn, self._grants.lock(self.store.about.file):
            if self.gone:
                raise no_such_attachment(self.id)
            seals = self.seals()
            anchor = anchor_of(seals[0]) if seals else -1
            leased = any("lease" in seal.enforcers for seal in seals)

            def inner() -> T:
                fd = anchor if anchor >= 0 else self._open()
                try:
                    with source.opened(fd, leased=leased) as opened:
                        return work(opened)
                finally:
                    os.close(fd)

            return await unbroken(self.run(inner))

    async def in_turn(self, function: Callable[..., T], *arguments: object) -> T:
        """In its thread, while nothing else of this attachment is under way."""
        async with self._turn:
            if self.gone:
                raise no_such_attachment(self.id)
            return await self.run(function, *arguments)

    # What it does

    async def verify(
        self,
        at: str,
        wanted: ByteRange | None = None,
        *,
        quiet: bool,
        seal: Seal | None = None,
        least: verdict.PossibleWriters = verdict.PossibleWriters.STILL,
    ) -> Tally:
        """Compare what is not open. `seal` is the one that it is done for, `least` the stance that
        is taken at the best."""
        tally = Tally()
        for first, count in await self.parts(wanted):
            await self.verify_part(tally, at, first, count, quiet=quiet, seal=seal, least=least)
        if wanted is None or wanted.hull(self.store.about.range) == wanted:
            await self.all_compared(tally)
        return tally

    async def all_compared(self, tally: Tally) -> None:
        """What of the file is not right is suspect by now: from here on its change time, of before
        it was read, tells whether it was written to."""
        if not tally.blocks["unstable"] and not self.seals():
            await self.run(lambda: self.store.save(changed=tally.changed, foreign=False))

    async def parts(
        self, wanted: ByteRange | None = None, size: int = check.PART
    ) -> list[tuple[int, int]]:
        return await self.run(lambda: list(self.layout.parts(wanted, size)))

    async def verify_part(
        self,
        tally: Tally,
        at: str,
        first: int,
        count: int,
        *,
        quiet: bool = False,
        seal: Seal | None = None,
        least: verdict.PossibleWriters = verdict.PossibleWriters.STILL,
    ) -> None:
        about, span = self.store.about, self._span(first, count)

        def stance() -> verdict.PossibleWriters:
            proven = at in ("grant", "return")
            seals, writes = self.seals(), about.writes
            return max(least, verdict.stance(seals, span, writes, quiet=quiet, proven=proven))

        before = stance()

        def work(opened: source.Source) -> Comparison:
            tally.way = opened.way
            return check.compare(self.layout, opened, first, count)

        found = await self.with_source(work)
        after = max(before, stance())
        tally.changed = tally.changed or found.changed
        changed, foreign = found.changed != about.changed, about.foreign
        kinds = [
            verdict.kind_of(f, after, changed=changed, foreign=foreign) for f in found.findings
        ]
        by_block = dict[int, str]()
        for finding, kind in zip(found.findings, kinds, strict=True):
            by_block[finding.block] = verdict.worst([kind, by_block.get(finding.block, "good")])
        tally.blocks.update(by_block.values())
        tally.blocks["good"] += found.good
        tally.blocks["open"] += found.open
        await self._record(tally, at, found, kinds, by_block, seal)

    def _span(self, first: int, count: int) -> ByteRange:
        one = self.layout.span(first)
        return ByteRange(one.offset, max(1, one.length) * count)

    async def _record(
        self,
        tally: Tally,
        at: str,
        found: Comparison,
        kinds: list[str],
        by_block: dict[int, str],
        seal: Seal | None,
    ) -> None:
        """The error first, then the state that shows it was found: no crash loses one."""
        made = [
            self.error(finding, kind, at, seal)
            for finding, kind in zip(found.findings, kinds, strict=True)
            if kind in verdict.ERRORS
        ]
        room = max(0, _RECORDED - len(tally.errors))
        if len(made) > room and room:
            more = len(made) - room
            made[room - 1] = _with_more(made[room - 1], more)
        tally.errors += await self.tell(made[:room])

        def settle() -> None:
            states = self.store.states(found.first, found.count)
            for block, kind in by_block.items():
                if kind in ("corrupt", "changed"):
                    states[block - found.first] = BlockState.SUSPECT
            check.settle(self.layout, found.first, states)

        await self.run(settle)

    async def tell(self, errors: list[PiError]) -> list[PiError]:
        """With their numbers, once they are on disk."""
        if not errors:
            return []
        numbered = self._log.numbered(errors)
        pool = self._grants.workers.of(("integrity", "errors"), 1)
        await pool.run(self._log.write, numbered)
        self._log.tell(numbered)
        for error in numbered:
            self._grants.machine.events.publish("integrity", error.seal, error=error)
        return numbered

    def error(self, finding: Finding, kind: str, at: str, seal: Seal | None) -> PiError:
        about = self.store.about
        first_good, last_good = self.store.good(self.layout.stretch(finding.block))
        return PiError(
            seq=0,
            time=time.time(),
            kind=kind,
            at=at,
            attachment=self.id,
            path=about.path,
            file=about.file,
            profile=self.layout.profile.name,
            block=finding.block,
            offset=finding.span.offset,
            length=finding.span.length,
            field=finding.field,
            expected=finding.expected.hex(),
            found=finding.found.hex(),
            physical=finding.physical,
            seal=seal.id if seal else None,
            holder=seal.process.holder.pid if seal else None,
            cookie=seal.place.cookie if seal and seal.place else 0,
            first_good=first_good,
            last_good=last_good,
            errno=finding.number,
        )

    async def tag(self, was: BlockState, wanted: ByteRange | None = None) -> Tally:
        """New tags for the blocks that are `was`."""
        tally = Tally()
        for first, count in await self.parts(wanted):

            def work(opened: source.Source, first: int = first, count: int = count) -> int:
                tally.way = opened.way
                return check.tag(self.layout, opened, first, count, was)

            tally.blocks["tagged"] += await self.with_source(work)
        return tally

    async def tag_changed(self, changed: list[ByteRange]) -> Tally:
        """New tags for the open blocks that touch these ranges, many in one go."""
        tally, size = Tally(), max(1, self.layout.profile.granularity)
        found = {part for wanted in changed for part in await self.parts(wanted)}
        for batch in _batches(_disjoint(sorted(found)), max(1, _BATCH // size)):

            def work(opened: source.Source, batch: check.Parts = batch) -> int:
                tally.way = opened.way
                return check.tag_all(self.layout, opened, batch, BlockState.OPEN)

            tally.blocks["tagged"] += await self.with_source(work)
        return tally

    async def add(self, wanted: ByteRange) -> Tally:
        """Of a byte stream: a new PI of this range, which takes the place of older ones."""
        tally = Tally()

        def work(opened: source.Source) -> None:
            tally.way = opened.way
            check.add(self.layout, opened, wanted)

        if wanted.clipped(self.store.about.range) != wanted:
            raise Refusal("bad-request", f"{wanted} is not inside of {self.store.about.range}")
        await self.with_source(work)
        tally.blocks["tagged"] = 1
        return tally

    async def remember_time(self, *, whole: bool) -> None:
        """Tags and data agree now, and nobody writes: remember the file's change time."""
        foreign = self.store.about.foreign and not whole
        await self.with_source(
            lambda opened: self.store.save(changed=opened.changed, foreign=foreign)
        )

    async def notice_foreign(self, seal: Seal) -> None:
        """A seal begins: was the file written to since its tags were true?"""
        about, anchor = self.store.about, anchor_of(seal)

        def work() -> None:
            try:
                if not about.foreign and os.fstat(anchor).st_ctime_ns != about.changed:
                    self.store.save(foreign=True)
            finally:
                os.close(anchor)

        await unbroken(self.run(work))

    async def move(self, was: BlockState, to: BlockState, wanted: ByteRange | None = None) -> int:
        """Blocks that touch the range, if any, and are `was` become `to`."""

        def work() -> int:
            parts = list(self.layout.parts(wanted))
            return sum(self.store.move(was, to, first, count) for first, count in parts)

        async with self._turn:
            return 0 if self.gone else await self.run(work)

    # How it is told

    async def info(self) -> PiAttachment:
        about = self.store.about
        progress = None
        if about.scrub >= 0 or about.scrub_started:
            done = self._span(0, max(1, about.scrub)).length if about.scrub > 0 else 0
            progress = PiProgress(
                done=about.range.length if about.scrub < 0 else done,
                total=about.range.length,
                running=self.scrub is not None and not self.scrub.done(),
                started=about.scrub_started,
                errors=self.scrub_errors,
                skipped=self.scrub_skipped,
                oldest=self.store.oldest,
            )
        return PiAttachment(
            id=about.id,
            file=about.file,
            path=about.path,
            profile=self.layout.profile.name,
            range=about.range,
            uncovered=about.uncovered,
            writes=about.writes,
            at_grant=about.at_grant,
            owner=about.owner,
            blocks=await self.run(self.store.counts),
            scrub=progress,
        )

    def report(self, tally: Tally, wanted: ByteRange | None) -> PiReport:
        about = self.store.about
        blocks = {kind: count for kind, count in sorted(tally.blocks.items()) if count}
        kinds: Iterable[str] = [kind for kind in blocks if kind in verdict.VERDICTS]
        return PiReport(
            attachment=self.id,
            range=wanted or about.range,
            verdict=verdict.worst(kinds),
            blocks=blocks,
            read=tally.way,
            errors=(told := fitting(tally.errors)),
            more=len(tally.errors) - len(told),
        )


def _disjoint(parts: check.Parts) -> check.Parts:
    """Parts in order, none of which has a block of the one before."""
    made: check.Parts = []
    end = 0
    for first, count in parts:
        start = max(first, end)
        if first + count > start:
            made.append((start, first + count - start))
            end = first + count
    return made


def _batches(parts: check.Parts, most: int) -> Iterator[check.Parts]:
    """Of about `most` blocks each."""
    batch: check.Parts = []
    blocks = 0
    for first, count in parts:
        batch.append((first, count))
        blocks += count
        if blocks >= most:
            yield batch
            batch, blocks = [], 0
    if batch:
        yield batch


def no_such_attachment(name: str) -> Refusal:
    return Refusal("no-such-attachment", f"there is no attachment {name}", {"attachment": name})


def anchor_of(seal: Seal) -> int:
    """A descriptor of the sealed file, which the caller closes."""
    if seal.hold.anchor < 0:
        raise Refusal("try-later", f"seal {seal.id} has no descriptor of its file", retry_after=1.0)
    return os.dup(seal.hold.anchor)


async def unbroken(work: Awaitable[T]) -> T:
    """What a thread does with descriptors that are its own goes on when its caller is cancelled."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        # Nobody asks for it any more, be it an error.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


def _with_more(error: PiError, more: int) -> PiError:
    return msgspec.structs.replace(error, more=more)

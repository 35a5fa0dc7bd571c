"""Granting and returning seals: with recall.py the only mutator of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from sealsvc import extents, faults, seals
from sealsvc.enforce import EnforcerSet, Guard, Verdict
from sealsvc.errors import Refusal
from sealsvc.events import EventLog
from sealsvc.host import ExtentMap, Host, Target
from sealsvc.journal import Journal
from sealsvc.messages import Grant
from sealsvc.model import ByteRange, FileId, IoMode, Kind
from sealsvc.policy import Policy
from sealsvc.processes import Peer, Process
from sealsvc.seals import Seal, SealTable
from sealsvc.states import Step

T = TypeVar("T")

_PIN_PATIENCE = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the connection (recalls go to it), its peer, and the process that is to hold."""

    peer: Peer
    process: Process
    client: object


class Workers:
    """Threads for what may block: every call that touches a file."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="seal-worker")

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def stop(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


class FileLocks:
    """One grant at a time on one file."""

    def __init__(self) -> None:
        self._locks: dict[tuple[int, int], tuple[asyncio.Lock, int]] = {}

    def of(self, file: FileId) -> _FileLock:
        return _FileLock(self._locks, (file.device, file.inode))


class _FileLock:
    def __init__(
        self, locks: dict[tuple[int, int], tuple[asyncio.Lock, int]], key: tuple[int, int]
    ) -> None:
        self._locks, self._key = locks, key

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._key, (asyncio.Lock(), 0))
        self._locks[self._key] = (lock, users + 1)
        try:
            await lock.acquire()
        except BaseException:
            self._leave(lock)
            raise

    async def __aexit__(self, *_: object) -> None:
        lock = self._locks[self._key][0]
        lock.release()
        self._leave(lock)

    def _leave(self, lock: asyncio.Lock) -> None:
        users = self._locks[self._key][1] - 1
        if users:
            self._locks[self._key] = (lock, users)
        else:
            del self._locks[self._key]


class Grants:
    def __init__(
        self,
        host: Host,
        enforcers: EnforcerSet,
        policy: Policy,
        table: SealTable,
        events: EventLog,
        workers: Workers,
        journal: Journal,
    ) -> None:
        self.host, self.enforcers, self.policy = host, enforcers, policy
        self.table, self.events, self.workers = table, events, workers
        self.journal = journal
        self._files = FileLocks()
        self.counters = {"grants": 0, "refusals": 0, "returns": 0}

    async def grant(self, request: Grant, asker: Asker, descriptor: int | None) -> tuple[Seal, int]:
        """A new seal and the descriptor of its holder, which the caller closes. Takes `descriptor`
        and the asker's process over, whatever happens."""
        try:
            with ExitStack() as undo:
                undo.callback(asker.process.close)
                target = await self._open(request, descriptor)
                undo.callback(os.close, target.fd)
                faults.point("grant:opened")
                async with self._files.of(target.file):
                    seal = await self._grant(request, asker, target)
                undo.pop_all()
        except Refusal as refusal:
            self.counters["refusals"] += 1
            self.events.publish(
                "refused",
                code=refusal.code,
                message=refusal.message,
                details=refusal.details,
                path=request.path,
            )
            raise
        return seal, target.fd

    async def _open(self, request: Grant, descriptor: int | None) -> Target:
        writable = request.iomode is IoMode.RW

        def work() -> Target:
            if descriptor is not None:
                return self.host.adopt(descriptor, writable=writable)
            return self.host.open_path(request.path or "", self.policy.roots, writable=writable)

        opening = asyncio.ensure_future(self.workers.run(work))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                os.close(opening.result().fd)
            raise

    async def _grant(self, request: Grant, asker: Asker, target: Target) -> Seal:
        held = self.table.of_file(target.file)
        wanted = _range(request, target)
        self.policy.admit(request, wanted, asker.process.holder.pid, held, len(self.table))
        faults.point("grant:admitted")
        abandoned = threading.Event()
        try:
            seal = await asyncio.shield(
                placing := asyncio.ensure_future(
                    self.workers.run(self._place, request, asker, target, wanted, abandoned)
                )
            )
        except asyncio.CancelledError:
            # The worker cannot be stopped; it undoes what it did once it looks.
            abandoned.set()
            await asyncio.wait([placing])
            if not placing.cancelled() and placing.exception() is None:
                placing.result().hold.release()
            raise
        self._publish(seal)
        return seal

    def _place(
        self,
        request: Grant,
        asker: Asker,
        target: Target,
        wanted: ByteRange,
        abandoned: threading.Event,
    ) -> Seal:
        """The order of a grant, in a worker thread. Each step's undo is beside it, and runs in
        reverse when a later one fails."""

        def progress(step: str, done: float) -> None:
            if abandoned.is_set():
                raise Refusal("cancelled", f"cancelled during {step}, at {done:.0%}")

        host, token = self.host, seals.new_token()
        sealed = wanted.rounded(target.filesystem.block_size)
        with ExitStack() as undo:
            # 1. Can a seal be kept here at all, by whom, and at which risks?
            host.refuse_if_unkeepable(target)
            chosen, why = self.enforcers.choose(target.filesystem, request)
            if chosen is None:
                raise Refusal("enforcer-unavailable", "; ".join(why), {"enforcers": why})
            risks = self.policy.accept(chosen.gaps(target.filesystem, request.kind))
            # 2. Prepare: give every block a written place of its own.
            host.prepare(target, sealed, request.prepare, progress)
            faults.point("grant:prepared")
            # 3. Arm, and prove that nobody gets around the guard. What conflicts waits from here.
            pid = asker.process.holder.pid
            exclusive = request.kind is Kind.EXCLUSIVE
            guard = Guard(token, sealed, pid, exclusive, Verdict.ARMING)
            hold = chosen.hold(target, guard)
            undo.callback(hold.release)
            faults.point("grant:held")
            # 4. Bring to the device what was pending, then read the map: before, it proves nothing.
            host.settle(target)
            faults.point("grant:settled")
            found = host.read_map(target.fd, sealed)
            _check_map(found, sealed, target)
            faults.point("grant:map-read")
            # 5. Mark the holder's description, so that its end can be proven.
            host.mark(target.fd, token)
            faults.point("grant:marked")
            # 6. Take away what could still move blocks; nothing may have moved meanwhile.
            host.steady(target, sealed)
            _check_still(found, host.read_map(target.fd, sealed), sealed, target)
            faults.point("grant:steadied")
            # 7. Pins are last: with one in force, even looking may block (docs/pin.md).
            if chosen.hold_late(hold, target, guard):
                with hold.given_up_after(_PIN_PATIENCE):
                    _check_still(found, host.read_map(target.fd, sealed), sealed, target)
            progress("arming", 1.0)
            seal = Seal(
                token=token,
                request=request,
                file=target.file,
                path=target.path,
                filesystem=target.filesystem,
                range=wanted,
                effective=sealed,
                map=extents.clip(found, sealed),
                enforcers=chosen.names,
                hold=hold,
                process=asker.process,
                accepted_risks=risks,
                client=asker.client,
                marked=True,
            )
            # 8. Conflicts that waited while we worked are conflicts with a seal from now on.
            undo.pop_all()
        return seal

    def _publish(self, seal: Seal) -> None:
        seal.move(Step.GRANT)
        if seal.request.ttl:
            seal.expires = seals.boottime() + seal.request.ttl
        # From here on the seal outlives us: recorded first, then known to anybody.
        try:
            faults.point("grant:recording")
            self.journal.granted(seal)
        except BaseException:  # it never was
            seal.hold.release()
            raise
        faults.point("grant:journalled")
        self.table.add(seal)
        self.counters["grants"] += 1
        self.events.publish("granted", seal.id, seal=seal.info())
        seal.hold.change(seal.verdict)
        faults.point("grant:published")

    # The end of a seal

    async def remnants(self, seal: Seal) -> list[str]:
        """What still maps the seal's range, as text; empty is the proof that nothing does."""
        others = frozenset(
            other.process.holder.pid
            for other in self.table.of_file(seal.file)
            if other is not seal and other.effective.overlaps(seal.effective)
        )
        question = seal.question(others)
        if self.host.is_free(question):
            return []
        found = await self.workers.run(self.host.remnants, question)
        return [f"process {r.pid} maps {r.range}" for r in found]

    async def give_back(self, seal: Seal, reason: str = "") -> None:
        """LAYOUTRETURN. Raises still-mapped, and changes nothing, while a mapping is left."""
        left = await self.remnants(seal)
        if not seal.live:
            return
        if left:
            raise Refusal(
                "still-mapped", f"seal {seal.id}: {', '.join(left)}", {"mappings": left}, 0.05
            )
        faults.point("return:proven")
        self.counters["returns"] += 1
        self.end(seal, Step.RETURN, reason)

    def end(self, seal: Seal, step: Step, reason: str = "") -> None:
        """The seal is over: whatever waited for it alone goes on. That is recorded before it is
        done: a guard of no seal is let go after a restart, a seal without its guard has drifted."""
        self.move(seal, step, reason)
        faults.point("end:journalled")
        self.table.remove(seal)
        faults.point("end:removed")
        seal.hold.release()
        faults.point("end:released")
        seal.released.set()
        seal.at_end()

    def move(self, seal: Seal, step: Step, reason: str = "") -> None:
        before = seal.state
        seal.move(step, reason)
        faults.point("move:recording")
        self.journal.progressed(seal)
        self.events.publish(
            "state",
            seal.id,
            **{"from": before, "to": seal.state, "reason": reason, "seqid": seal.seqid},
        )


def _range(request: Grant, target: Target) -> ByteRange:
    length = request.length if request.length is not None else target.size - request.offset
    if length <= 0 or request.offset + length > target.size:
        raise Refusal(
            "beyond-eof",
            f"the range {request.offset}:{request.length or 'end'} is not inside"
            f" {target.path}, which has {target.size} bytes",
            {"size": target.size, "offset": request.offset, "length": request.length},
        )
    return ByteRange(request.offset, length)


def _check_map(found: ExtentMap, sealed: ByteRange, target: Target) -> None:
    bad = extents.unsuitable(found, sealed)
    if not bad:
        return
    shown = [
        {"offset": b.range.offset, "length": b.range.length, "flag": b.reason, "advice": b.advice}
        for b in bad[:32]
    ]
    first = bad[0]
    raise Refusal(
        "extent-unsuitable",
        f"{target.path}: bytes {first.range} are {first.reason}: {first.advice}"
        + (f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""),
        {"path": target.path, "extents": shown, "count": len(bad)},
    )


def _check_still(before: ExtentMap, now: ExtentMap, sealed: ByteRange, target: Target) -> None:
    if extents.same(before, now, sealed):
        return
    raise Refusal(
        "try-later",
        f"the extent map of {target.path} changed while the seal was being made",
        {"path": target.path},
        retry_after=0.1,
    )


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)

"""Relocations: jobs that move a file's blocks under the seals of its holders.

The order: copy while holders go on; recall, with `quiesce`; when every seal is quiesced or over,
exchange the extents; record the new map in each seal and tell its holder; if there is more to do
(ext4), the same again. Each step is on disk before it is taken (record.py).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sealsvc.copies.relocation import dirty
from sealsvc.copies.relocation.donor import improves, make_donor, runs
from sealsvc.copies.relocation.holders import Events, guarded, until_done
from sealsvc.copies.relocation.moving import Exchange, Moving, Pieces, Progress
from sealsvc.copies.relocation.record import Phase, Record, Records
from sealsvc.copies.relocation.replacing import replaced, undo
from sealsvc.copies.tags import Tags
from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId, Kind, State
from sealsvc.core.states import Step
from sealsvc.enforce.base import Hold
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.jobs.jobs import Job, JobRunner
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.policy import Policy
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.returns import Returns
from sealsvc.lifecycle.seals import Seal
from sealsvc.lifecycle.state_machine import may
from sealsvc.linux import native
from sealsvc.linux.host import ExtentMap, Target
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import JobInfo, JobKind
from sealsvc.protocol.relocation import Relocate
from sealsvc.protocol.seals import SealInfo
from sealsvc.runtime import clock, faults
from sealsvc.runtime.limits import leaves_as_many

T = TypeVar("T")
log = logging.getLogger(__name__)

RUNNING = 4
_PAUSES_LOST = 8  # pauses in which somebody wrote to the file all the same
_TAKEN_UP = 3  # services that take one relocation up
_MARGIN = 30.0  # seconds from the end of a holder's grace to the deadline of its recall
_REASON = "the file is being relocated"
_USED = (State.GRANTED, State.ACTIVE)


class Relocations:
    """`kept` is the directory of the records."""

    def __init__(
        self,
        jobs: JobRunner,
        grants: Grants,
        returns: Returns,
        recaller: Recaller,
        kept: Path,
        tags: Tags | None,
    ) -> None:
        self._jobs, self._grants, self._returns, self._recaller = jobs, grants, returns, recaller
        self._records = Records(kept)
        self.tags = tags
        self._running: dict[tuple[int, int], Record] = {}
        self._quiet: dict[str, asyncio.Event] = {}  # by seal, of those that are recalled for us

    async def start(self, peer: Peer, request: Relocate) -> JobInfo:
        if not self._grants.policy.is_operator(peer):
            raise Refusal("denied", f"uid {peer.uid} may not relocate files", {"uid": peer.uid})
        if self._grants.host.simulated:
            raise Refusal("filesystem-unsupported", "there are no blocks in a simulation")
        goal = request.goal
        if (goal.to is not None) + goal.defrag + (goal.align is not None) != 1:
            raise Refusal("bad-request", "name one goal: to, defrag or align")
        if goal.align is not None and goal.align & (goal.align - 1):
            raise Refusal("bad-request", f"align is {goal.align}: a power of two is needed")
        for path in filter(None, (request.path, goal.to)):
            file = await self._jobs.paths.identify(path, request.below or ["/"])
            if path == request.path:
                found = file
        mine = sum(running.principal == request.principal for running in self._running.values())
        if request.principal and not leaves_as_many(mine, len(self._running), RUNNING):
            message = f"{len(self._running)} relocations are under way, {mine} of them for who asks"
            raise Refusal("limit-reached", message, retry_after=5.0)
        record = Record(
            id=secrets.token_hex(8),
            path=request.path,
            device=found.device,
            inode=found.inode,
            goal=goal,
            grace=request.grace,
            principal=request.principal,
            replace=request.replace,
        )
        return await self._begin(record)

    async def _begin(self, record: Record) -> JobInfo:
        key = (record.device, record.inode)
        if key in self._running or len(self._running) >= RUNNING:
            message = f"{len(self._running)} relocations are under way"
            if key in self._running:
                message = f"{record.path} is being relocated already"
            raise Refusal("limit-reached", message, retry_after=5.0)
        self._running[key] = record

        async def work(job: Job) -> dict[str, Any]:
            try:
                return await self._work(record, job)
            finally:
                del self._running[key]

        return await self._jobs.begin(JobKind.RELOCATE, work, record.path, record.principal)

    # The holder's answer

    async def quiesce(self, seal: Seal) -> SealInfo:
        """Raises still-mapped while something of the range is mapped."""
        if seal.id not in self._quiet or seal.state is not State.RECALLED:
            raise Refusal(
                "bad-request",
                f"seal {seal.id} is {seal.state}, not recalled for a relocation: return it",
                {"seal": seal.id, "state": seal.state},
            )
        left = await self._returns.remaining_mappings(seal)
        if left and seal.live:
            raise Refusal(
                "still-mapped", f"seal {seal.id}: {', '.join(left)}", {"mappings": left}, 0.05
            )
        if quiet := self._quiet.get(seal.id):
            quiet.set()
        return seal.info()

    # What a service that was killed left

    def resume(self) -> None:
        """Before any map is audited: those of quiesced seals may have changed."""
        if self._grants.host.simulated:
            return
        try:
            records = self._records.read()
        except OSError as error:
            log.error("records of relocations cannot be read: %s", error)
            return
        for record in records:
            if record.phase is Phase.SWAP and not record.replace:
                for seal in self._seals_of(record):
                    seal.quiesced = True
            self._recaller.fencing.tasks.spawn(
                f"resume relocation {record.id}", self._resume(record)
            )

    async def _resume(self, record: Record) -> None:
        """Its seals go on with the map that the file has now, and it is begun anew. Of what it had
        copied nothing is left; pieces that were moved stay where they are."""
        pool = self._grants.workers.of(record.device)
        seals = [seal for seal in self._seals_of(record) if seal.state is State.RECALLED]
        await pool.run(dirty.forget, record.id)
        if record.phase is Phase.SWAP and not record.replace:
            await self._remap(record, seals, "the relocation was interrupted: read the map again")
        else:
            self._call_off(record, seals, set())
        if record.replace:
            await pool.run(undo, record)
            await pool.run(self._records.remove, record)
            return
        record.begun += 1
        record.phase, record.seals = Phase.COPY, []
        try:
            if record.begun >= _TAKEN_UP:
                raise Refusal("try-later", f"it was interrupted {record.begun} times")
            await pool.run(self._records.write, record)
            await self._begin(record)
        except (Refusal, OSError) as error:
            reason = f"the relocation of {record.path} is given up: {error}"
            self._grants.machine.events.publish("alarm", reason=reason)
            await pool.run(self._records.remove, record)

    def _seals_of(self, record: Record) -> list[Seal]:
        found = map(self._grants.machine.table.get, record.seals)
        return [seal for seal in found if seal is not None]

    # The relocation

    async def _work(self, record: Record, job: Job) -> dict[str, Any]:
        cancelled = threading.Event()

        def progress(done: int, total: int) -> None:
            if cancelled.is_set():
                raise Refusal("cancelled", "the relocation was cancelled")
            loop.call_soon_threadsafe(self._tell, job, done, total)

        loop = asyncio.get_running_loop()
        key = ("relocation", record.device)
        pool = self._grants.workers.of(key, is_background=True)
        run = functools.partial(_finished, pool.run, cancelled)
        with ExitStack() as stack:
            await run(self._records.write, record)
            stack.callback(self._forget, record)
            faults.point("relocate:recorded")
            if record.replace:
                self._jobs.tell(job, step="replacing")
                parts = (record, self._grants, self._recaller, self._records)
                if await self._tags(record, job):
                    raise Refusal("bad-request", f"{record.path} has tags: detach them first")
                return await replaced(*parts, run, progress, self._call_off)
            opened = await run(_Opened, self._grants, record)
            stack.callback(opened.close)
            if opened.reason:
                return {"moved": False, "reason": opened.reason, **opened.told()}
            before = await self._tags(record, job)
            pauses = await self._move(record, job, opened.moving, run, progress, opened)
            after = await run(native.read_extents, opened.target.fd, None)
            tags = {"tags": await self._tags(record, job)} if before else {}
            return {"moved": True, **opened.told(after), "pauses": pauses, **tags}

    async def _tags(self, record: Record, job: Job) -> list[dict[str, Any]]:
        """Tags stay at their places of the file, and are compared before and after: what was wrong
        before is named while the file's change time still says that nobody wrote to it."""
        if self.tags is None:
            return []
        self._jobs.tell(job, step="tags")
        return await self.tags.check(record.device, record.inode)

    async def _move(
        self,
        record: Record,
        job: Job,
        moving: Moving,
        run: Callable[..., Awaitable[Any]],
        progress: Progress,
        opened: _Opened,
    ) -> list[float]:
        pauses: list[float] = []
        lost = 0
        while True:
            self._jobs.tell(job, step="copying")
            await run(moving.copy, progress)
            faults.point("relocate:copied")
            self._jobs.tell(job, step="recalling")
            async with self._pause(record, opened.target, run):
                began = clock.now()
                swap = asyncio.ensure_future(run(moving.swap, progress))
                whole = await swap
                faults.point("relocate:swapped")
                pauses.append(round(clock.now() - began, 4))
            if whole:
                return pauses
            if isinstance(moving, Exchange):
                lost += 1
                if lost >= _PAUSES_LOST:
                    raise Refusal(
                        "file-in-use",
                        f"{record.path} was written to in each of {lost} pauses: others than its"
                        " holders do, or holders that said they were quiet",
                    )
            await asyncio.sleep(pauses[-1])  # holders get as much time as they lose

    def _tell(self, job: Job, done: int, total: int) -> None:
        self._jobs.tell(job, done=done, total=total)

    def _forget(self, record: Record) -> None:
        """The service may be ending: its workers with it."""
        self._records.remove(record)

    # The pause

    @asynccontextmanager
    async def _pause(
        self, record: Record, target: Target, run: Callable[..., Awaitable[Any]]
    ) -> AsyncIterator[None]:
        """No holder uses the map, no seal is granted, and what would conflict with a seal waits."""
        async with self._grants.lock(target.file):
            seals = [seal for seal in self._grants.machine.table.of_file(target.file) if seal.live]
            _refuse_unmovable(seals, target)
            hold: Hold = await run(_guarded, self._grants.enforcers, target, not seals)
            try:
                async with self._recalled(record, seals, run):
                    yield
            finally:
                await self._grants.workers.of(target.file.device).run(hold.release)

    @asynccontextmanager
    async def _recalled(
        self, record: Record, seals: list[Seal], run: Callable[..., Awaitable[Any]]
    ) -> AsyncIterator[None]:
        record.phase, record.seals = Phase.RECALL, [seal.id for seal in seals]
        await run(self._records.write, record)
        asked = [seal for seal in seals if seal.state in _USED and seal.place is None]
        self._quiet |= {seal.id: asyncio.Event() for seal in asked}
        swapping = False
        try:
            for seal in seals:
                if seal.live:
                    seal.relocating = seal in asked
                    grace = record.grace + _MARGIN
                    self._recaller.recall(seal, _REASON, grace=grace)
            await self._until_quiet(record, seals)
            faults.point("relocate:quiet")
            record.phase = Phase.SWAP
            await run(self._records.write, record)
            faults.point("relocate:swapping")
            swapping = True
            for seal in asked:
                seal.quiesced = True
            yield
        finally:
            quiet = {id for id, event in self._quiet.items() if event.is_set()}
            left = [seal for seal in asked if seal.state is State.RECALLED]
            if swapping:
                await asyncio.shield(
                    self._remap(record, left, "the pause of the relocation is over")
                )
            else:
                self._call_off(record, left, quiet)
            for seal in asked:
                self._quiet.pop(seal.id, None)

    async def _until_quiet(self, record: Record, seals: list[Seal]) -> None:
        def events_of(seal: Seal) -> Events:
            quiet = self._quiet.get(seal.id)
            return [seal.released] if quiet is None else [seal.released, quiet]

        await until_done(record, seals, events_of, "neither quiesced nor returned seal")

    async def _remap(self, record: Record, seals: list[Seal], reason: str) -> None:
        """Each seal goes on with the map that its file has now; a range that has no fit map any
        more is lost."""
        maps = await self._grants.workers.of(record.device).run(_maps_of, self._grants, seals)
        for seal, found in zip(seals, maps, strict=True):
            if seal.state is not State.RECALLED:
                continue
            seal.quiesced = False
            if found is None or extents.unsuitable(found, seal.effective):
                self._recaller.lose(seal, f"{reason}, and it has no map that can be sealed")
                continue
            self._grants.machine.remap(seal, found, reason)
            self._answer_conflicts(seal)
        faults.point("relocate:remapped")

    def _call_off(self, record: Record, seals: list[Seal], quiet: set[str]) -> None:
        """The map is as it was. Whoever had quiesced is told; the others know nothing of it."""
        for seal in seals:
            if seal.id in quiet:
                reason = "the relocation was called off"
                self._grants.machine.remap(seal, seal.map, reason)
            else:
                seal.relocating = False
                self._grants.machine.step(seal, Step.SATISFY, f"{record.path} is not relocated")
            self._answer_conflicts(seal)

    def _answer_conflicts(self, seal: Seal) -> None:
        """What began to wait for the seal during the pause joined our recall of it."""
        for waiting in list(self._recaller.waiting.values()):
            if seal.id in waiting.seals and may(seal, Step.RECALL):
                self._recaller.recall(seal, "conflict", operation=waiting.report.operation)


class _Opened:
    """The file, its donor, and the way to exchange them; in a worker."""

    def __init__(self, grants: Grants, record: Record) -> None:
        policy: Policy = grants.policy
        self.target = grants.host.open_path(record.path, policy.roots, writable=True)
        self.moving: Moving
        with ExitStack() as undo:
            undo.callback(os.close, self.target.fd)
            _refuse_immovable(grants, self.target, FileId(record.device, record.inode))
            os.fsync(self.target.fd)
            self.before = native.read_extents(self.target.fd, None)
            _refuse_shared(self.target, self.before)
            if not len(self.before):
                raise Refusal("bad-request", f"{record.path} has no blocks", {"path": record.path})
            donor = make_donor(self.target, record.goal, self.before)
            planned = native.read_extents(donor, None)
            self.reason = improves(record.goal, self.before, planned)
            if self.target.filesystem.type == "xfs":
                self.moving = Exchange(record.id, self.target, donor, self.before)
            else:
                self.moving = Pieces(self.target, donor, self.before)
            undo.pop_all()

    def told(self, after: ExtentMap | None = None) -> dict[str, Any]:
        before = {"extents": len(runs(self.before)), "first": int(self.before[0, 1])}
        if after is None:
            return {"before": before}
        now = {"extents": len(runs(after)), "first": int(after[0, 1]) if len(after) else None}
        return {"before": before, "after": now, "tracking": self.moving.tracking}

    def close(self) -> None:
        self.moving.close()
        os.close(self.target.fd)


def _refuse_immovable(grants: Grants, target: Target, file: FileId) -> None:
    if not target.file.same_inode(file):
        raise Refusal("no-such-file", f"{target.path} is another file by now")
    if reason := target.filesystem.unsupported:
        raise Refusal("filesystem-unsupported", f"{target.path}: {reason}")
    if grants.host.has_dax(target.fd):
        raise Refusal(
            "filesystem-unsupported",
            f"{target.path} is mapped without a page cache (DAX): neither XFS nor ext4 exchanges"
            " extents of such files; `sealctl relocate --replace` gives its name to a new file",
            {"path": target.path},
        )
    if target.filesystem.type == "xfs" and native.fsxattr(target.fd).xflags & 1:
        raise Refusal("filesystem-unsupported", f"{target.path} lies on the realtime device")


def _refuse_shared(target: Target, rows: ExtentMap) -> None:
    if shared := sum(bool(int(flags) & extents.EXTENT_SHARED) for flags in rows[:, 3]):
        raise Refusal(
            "extent-unsuitable",
            f"{target.path} shares {shared} extents with other files, and would share none after"
            " it: unshare it first (fallocate --unshare-range, or a seal with prepare=unshare)",
            {"path": target.path, "shared_extents": shared},
        )


def _refuse_unmovable(seals: list[Seal], target: Target) -> None:
    for seal in seals:
        if found := {"pin", "lease"} & set(seal.enforcers):
            raise Refusal(
                "seal-conflict",
                f"seal {seal.id} of {target.path} is kept by {', '.join(found)}, under which the"
                " file cannot be opened or looked at: have it returned first",
                {"seal": seal.id},
            )
        if seal.state not in (*_USED, State.COURTESY, State.RECALLED):
            raise Refusal("try-later", f"seal {seal.id} of {target.path} is {seal.state}")


def _guarded(enforcers: EnforcerSet, target: Target, unsealed: bool) -> Hold:
    """A guard of our own over the whole file: against opens, too, where nobody has it open or
    sealed; else against what changes maps."""
    if unsealed:
        try:
            return guarded(enforcers, target, Kind.EXCLUSIVE)
        except Refusal as refusal:
            if refusal.code != "file-in-use":
                raise
    return guarded(enforcers, target, Kind.SHARED)


def _maps_of(grants: Grants, seals: list[Seal]) -> list[ExtentMap | None]:
    found: list[ExtentMap | None] = []
    for seal in seals:
        try:
            found.append(
                extents.clip(
                    grants.host.look(seal.hold.anchor, seal.file, seal.effective), seal.effective
                )
            )
        except (Refusal, OSError):
            found.append(None)
    return found


async def _finished(run: Callable[..., Awaitable[T]], cancelled: threading.Event, *call: Any) -> T:
    """A call in a worker, which is waited for even when the job is cancelled: what it uses is taken
    away after that."""
    working = asyncio.ensure_future(run(*call))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([working])
        raise

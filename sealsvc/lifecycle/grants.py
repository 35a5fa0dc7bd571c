"""Granting seals: the steps of a grant, in order, each with its undo."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from dataclasses import dataclass
from weakref import WeakValueDictionary

from sealsvc.core import extents
from sealsvc.core.errors import Refusal, of_kin
from sealsvc.core.model import ByteRange, FileId, IoMode, Kind, Mark, SealTerms, State
from sealsvc.core.paths import lies_below
from sealsvc.core.states import Step
from sealsvc.enforce import overlay_mounts
from sealsvc.enforce.base import Guard, Verdict
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle import seals
from sealsvc.lifecycle.paths import concealed, no_such_file
from sealsvc.lifecycle.policy import Policy
from sealsvc.lifecycle.seals import Seal
from sealsvc.lifecycle.state_machine import StateMachine
from sealsvc.linux import filesystem
from sealsvc.linux.host import ExtentMap, Host, Target
from sealsvc.linux.processes import Peer, Process
from sealsvc.protocol.seals import Grant
from sealsvc.registry import Registry
from sealsvc.runtime import faults
from sealsvc.runtime.closing import close_later
from sealsvc.runtime.limits import FairQueue
from sealsvc.runtime.workers import Looks, Workers

_PIN_PATIENCE = 1.0  # seconds


# Called with a new seal just before it is recorded, and with a stack that takes its undo.
Before = Callable[[Seal, ExitStack], None]


@dataclass(frozen=True, slots=True)
class Requester:
    """The requester of a grant: `client` is its connection, which receives recalls, `peer` the
    credentials of that connection, `process` the process that will hold the seal. `digest` is the
    digest of a request that has a key (service/idempotency.py), else empty."""

    peer: Peer
    process: Process
    client: object
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class PassedDescriptor:
    """A descriptor that a client passed, and what is known of it without a call to its file
    system. `place` is the key of the worker pool in which the file is used."""

    fd: int
    place: Hashable
    writable: bool


def passed_of(fd: int) -> PassedDescriptor:
    """Describe a descriptor that was received. Call it in a thread: reading the fdinfo of a file
    that a client chose may block. Raises OSError."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    return PassedDescriptor(fd, filesystem.place_of(fd), mode != os.O_RDONLY)


class FileLocks:
    """A lock for each file, so that grants on one file do not run at the same time."""

    def __init__(self) -> None:
        self._locks: dict[tuple[int, int], tuple[asyncio.Lock, int]] = {}

    def of(self, file: FileId) -> _FileLock:
        """The lock of a file, as an async context manager."""
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
    """Grants seals. Each runs in a worker thread of its file system, and waits for its turn there
    (FairQueue) and for other grants on the same file."""

    def __init__(
        self,
        host: Host,
        enforcers: EnforcerSet,
        policy: Policy,
        machine: StateMachine,
        workers: Workers,
        registry: Registry,
    ) -> None:
        self.host, self.enforcers, self.policy = host, enforcers, policy
        self.machine, self.workers, self.registry = machine, workers, registry
        self.silent: set[int] = set()  # devices that did not answer the last audit
        self.looks = Looks(workers)
        self._files = FileLocks()
        self._queues: WeakValueDictionary[int, FairQueue] = WeakValueDictionary()
        self.counters = {"grants": 0, "refusals": 0}

    async def grant(
        self,
        request: Grant,
        asker: Requester,
        passed: PassedDescriptor | None,
        before: Before = lambda *_: None,
    ) -> tuple[Seal, int]:
        """Grant a seal. Returns it with the descriptor that the holder is to use, which the caller
        closes.

        Takes ownership of `passed` and of `asker.process`, also when it fails. `before` is called
        with the seal just before it is recorded; when it raises, the grant is undone. Raises
        Refusal when the seal is not granted, OSError when it cannot be recorded."""
        try:
            with ExitStack() as undo:
                undo.callback(asker.process.close)
                target = await self._open(request, passed)
                # The last close of a file on a frozen file system may block.
                undo.callback(close_later, target.file.device, [target.fd])
                faults.point("grant:opened")
                who = self.policy.asker(asker.peer.uid, request.principal)
                turn = self._queue_of(target.file.device).turn(who)
                async with self.lock(target.file), turn:
                    seal = await self._grant(request, asker, target, before)
                undo.pop_all()
        except Refusal as refusal:
            self.refused(of_kin(refusal), request, asker.peer)
            raise
        return seal, target.fd

    def lock(self, file: FileId) -> _FileLock:
        """The lock under which seals are granted on `file`; an async context manager."""
        return self._files.of(file)

    def refused(self, refusal: Refusal, request: Grant, peer: Peer) -> None:
        """Count a refused grant, publish it, and have the registry record it."""
        self.counters["refusals"] += 1
        self.machine.events.publish(
            "refused",
            code=refusal.code,
            message=refusal.message,
            details=refusal.details,
            path=request.path,
        )
        self.registry.refused(refusal, request.path, peer, request.trace)

    @property
    def queued(self) -> int:
        """Number of grants that wait for their turn."""
        return sum(queue.waiting for queue in self._queues.values())

    def _queue_of(self, device: int) -> FairQueue:
        """The queue of one file system. Each has its own, so that one which is slow does not delay
        grants on others."""
        queue = self._queues.get(device)
        if queue is None:
            queue = self._queues[device] = FairQueue(self.workers.count)
        return queue

    async def hand_over_again(self, seal: Seal) -> int | None:
        """A descriptor for a holder that repeats its request because the answer to it was lost.
        None when the holder's own description is still open. The caller closes the descriptor.
        Raises Refusal and OSError when the file cannot be opened again."""
        if not seal.hold.apart and seal.hold.anchor >= 0:
            return os.dup(seal.hold.anchor)
        opened = await self.workers.of(seal.file.device).run(self._open_again, seal)
        if opened is None:
            return None
        fd, seal.mark = opened
        self.machine.journal.granted(seal)
        return fd

    def _open_again(self, seal: Seal) -> tuple[int, Mark] | None:
        if self.host.is_left(seal.hold.anchor, seal.mark):
            return None
        writable = seal.request.iomode is IoMode.RW
        target = self.host.open_path(seal.path, self.policy.roots, writable=writable)
        try:
            if not target.file.same_inode(seal.file):
                raise Refusal(
                    "no-such-file", f"{seal.path} is another file by now", {"path": seal.path}
                )
            sole = seal.request.kind is Kind.EXCLUSIVE
            return target.fd, self.host.mark(target.fd, seal.token, sole=sole)
        except BaseException:
            os.close(target.fd)
            raise

    async def _open(self, request: Grant, passed: PassedDescriptor | None) -> Target:
        writable = request.iomode is IoMode.RW

        below = request.only.below

        def work() -> Target:
            if passed is not None:
                try:
                    target = self.host.adopt(passed.fd, writable=writable)
                    return target if below is None else self._confined(target, below)
                except BaseException:
                    close_later(passed.place, [passed.fd])
                    raise
            path = request.path or ""
            if below is not None and not lies_below(path, below):
                raise no_such_file(path)  # not opened: even that could be noticed
            try:
                return self.host.open_path(path, self.policy.roots, writable=writable)
            except Refusal as refusal:
                raise concealed(refusal, path, below) from None

        place = passed.place if passed else filesystem.place_at(request.path or "")
        opening = asyncio.ensure_future(self.workers.of(place).run(work))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                close_later(place, [opening.result().fd])
            raise

    def _confined(self, target: Target, below: list[str]) -> Target:
        """`target`, if its path lies in one of the directories `below` and leads to the same inode
        in the service's mount namespace: a descriptor's path is one of the mount namespace that it
        was opened in. Raises Refusal `no-such-file`."""
        outside = Refusal("no-such-file", "there is no such file", {})  # must not reveal the path
        try:
            found = self.host.identify(target.path, self.policy.roots)
        except Refusal:
            raise outside from None
        if not lies_below(target.path, below) or not target.file.same_inode(found):
            raise outside
        return target

    async def _grant(
        self, request: Grant, asker: Requester, target: Target, before: Before
    ) -> Seal:
        self.policy.refuse_outside(request.only, target.path)
        wanted = _range(request, target)
        self._end_courtesy(request, target, wanted)
        self.policy.admit(request, wanted, asker.process.holder, target, self.machine.table)
        faults.point("grant:admitted")
        abandoned = threading.Event()
        try:
            seal = await asyncio.shield(
                placing := asyncio.ensure_future(
                    self.workers.of(target.file.device).run(
                        self._place, request, asker, target, wanted, abandoned
                    )
                )
            )
        except asyncio.CancelledError:
            # The thread cannot be stopped: it undoes its steps when it next sees `abandoned`.
            abandoned.set()
            await asyncio.wait([placing])
            if not placing.cancelled() and placing.exception() is None:
                placing.result().hold.release()
            raise
        with ExitStack() as undo:
            undo.callback(seal.hold.release)
            before(seal, undo)
            self.machine.record(seal)
            undo.pop_all()
        self.registry.granted(self.machine.begin(seal), seal.map, asker.peer, request.trace)
        self.counters["grants"] += 1
        return seal

    def _end_courtesy(self, request: Grant, target: Target, wanted: ByteRange) -> None:
        """End the courtesy seals that conflict with the request."""
        for seal in self.machine.table.of_file(target.file):
            exclusive = Kind.EXCLUSIVE in (seal.request.kind, request.kind)
            if seal.state is State.COURTESY and (exclusive or seal.effective.overlaps(wanted)):
                self.machine.step(seal, Step.EXPIRE, "its ttl has passed, and another asks")

    def _place(
        self,
        request: Grant,
        asker: Requester,
        target: Target,
        wanted: ByteRange,
        abandoned: threading.Event,
    ) -> Seal:
        """The steps of a grant, in a worker thread. When one fails, the undos of those before it
        run in reverse order. Raises Refusal, also when `abandoned` is set, and OSError."""

        def progress(step: str, done: float) -> None:
            if abandoned.is_set():
                raise Refusal("cancelled", f"cancelled during {step}, at {done:.0%}")

        host, token = self.host, seals.new_token()
        sealed = wanted.rounded(target.filesystem.block_size)
        with ExitStack() as undo:
            # 1. Check whether a seal can be kept here, choose the enforcers, and check the risks.
            exclusive = request.kind is Kind.EXCLUSIVE
            host.refuse_if_unkeepable(target, exclusive=exclusive)
            if not self.policy.accepts(overlay_mounts.RISK):
                self.enforcers.refuse_overlays(target.filesystem, target.fd)
            terms = SealTerms(request.kind, request.conflict, request.fence, request.grace)
            chosen, why = self.enforcers.choose(target.filesystem, terms)
            if chosen is None:
                raise Refusal("enforcer-unavailable", "; ".join(why), {"enforcers": why})
            gaps = (*chosen.gaps(target.filesystem, request.kind), *host.gaps(target))
            risks = self.policy.accept(gaps)
            self.policy.refuse_endless_wait(request, chosen.names)
            # Whether truncation through overlays is an accepted risk, or seen by an enforcer.
            overlaid = overlay_mounts.RISK in risks or chosen.sees(
                overlay_mounts.RISK, target.filesystem, request.kind
            )
            # 2. Prepare the blocks as requested: allocated, written, not shared.
            host.prepare(target, sealed, request.prepare, progress)
            faults.point("grant:prepared")
            # 3. Arm, and prove that no descriptor and no operation under way bypasses the guard.
            # Conflicting operations wait from here on.
            pid = asker.process.holder.pid
            guard = Guard(token, sealed, pid, exclusive, Verdict.ARMING)
            hold = chosen.hold(target, guard)
            undo.callback(hold.release)
            faults.point("grant:held")
            # 4. Write back dirty data, then read the map. A map that was read before the guard was
            # in force could have changed since.
            host.settle(target)
            faults.point("grant:settled")
            found = host.read_map(target.fd, sealed)
            check_map(found, sealed, target)
            check_size(target, wanted)
            faults.point("grant:map-read")
            # 5. Mark the holder's open file description, so that it can be proven to be closed.
            mark = host.mark(target.fd, token, sole=exclusive)
            faults.point("grant:marked")
            # 6. Remove what could still move blocks (preallocations for copy on write), and check
            # that nothing has moved meanwhile.
            host.steady(target)
            check_still(found, host.read_map(target.fd, sealed), sealed, target)
            host.refuse_if_overlaid(target, exclusive=exclusive, anywhere=not overlaid)
            faults.point("grant:steadied")
            # 7. Pins are last: while one is in force, even reading the map may block (docs/pin.md).
            if chosen.hold_late(hold, target, guard):
                with hold.given_up_after(_PIN_PATIENCE):
                    check_still(found, host.read_map(target.fd, sealed), sealed, target)
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
                mark=mark,
                asker_uid=asker.peer.uid,
                digest=asker.digest,
            )
            # 8. From now on the conflicts that have waited since step 3 are conflicts with a seal.
            undo.pop_all()
        return seal


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


def check_map(found: ExtentMap, sealed: ByteRange, target: Target) -> None:
    """Raises Refusal `extent-unsuitable` unless every extent of `sealed` can be sealed. `found` is
    an (n, 4) array (core/extents.py)."""
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


def check_size(target: Target, wanted: ByteRange) -> None:
    """Raises Refusal `beyond-eof` if the file has become shorter than `wanted`. Called with the
    guard in force: before that anybody could have truncated the file."""
    size = os.fstat(target.fd).st_size
    if wanted.end > size:
        raise Refusal(
            "beyond-eof",
            f"the range {wanted.offset}:{wanted.length} is not inside {target.path}, which was cut"
            f" to {size} bytes meanwhile",
            {"size": size, "offset": wanted.offset, "length": wanted.length},
        )


def check_still(before: ExtentMap, now: ExtentMap, sealed: ByteRange, target: Target) -> None:
    """Raises Refusal `try-later` if the two maps, (n, 4) arrays, differ within `sealed`."""
    if extents.same(before, now, sealed):
        return
    raise Refusal(
        "try-later",
        f"the extent map of {target.path} changed while the seal was being made",
        {"path": target.path},
        retry_after=0.1,
    )

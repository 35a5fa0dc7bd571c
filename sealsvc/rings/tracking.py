"""Tracking seals in registrations. A seal that was granted natively is untracked: the service does
not know it. When it meets a conflict, or a command asks for more than native code decides, it is
tracked: built from its slot, and from then on handled as any other seal. When the command is done
and no recall is under way, it becomes untracked again."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Kind, Operation, RingPlace, State
from sealsvc.core.states import LIVE, Step
from sealsvc.enforce import guards
from sealsvc.enforce.base import Guard, Verdict, watchable
from sealsvc.enforce.fanotify import operation_of
from sealsvc.lifecycle import validation
from sealsvc.lifecycle.grants import check_still
from sealsvc.lifecycle.recall import Recaller, wanted_of
from sealsvc.lifecycle.returns import Returns
from sealsvc.lifecycle.seals import Seal, SealObserver
from sealsvc.lifecycle.state_machine import may
from sealsvc.linux.host import ExtentMap, Target
from sealsvc.linux.native import lib
from sealsvc.linux.processes import Peer
from sealsvc.rings.keeper import IO_MODES, NANO, state_of
from sealsvc.rings.registrations import Rings
from sealsvc.runtime import clock
from sealsvc.runtime.tasks import Tasks

_QUIET = (State.GRANTED, State.ACTIVE)
_REMEMBERED = 8192  # seals that have ended; more reports than these are never unread (outbox.c)
_UNHEARD = 0.2  # seconds after which a recalled seal is recalled even if no conflict was reported
_PAUSES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05)  # seconds before each repetition of a proof
_PROMPT = 0.002  # seconds that a client which is just returning is given before it is recalled
_MODES = {number: mode for mode, number in IO_MODES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """A copy of a slot of a seal table (struct seal_slot). `expires` and `deadline` are ns of
    CLOCK_BOOTTIME (0: none)."""

    id: int
    word: int
    range: ByteRange
    expires: int
    deadline: int
    cookie: int
    iomode: int


@dataclass(frozen=True, slots=True)
class Command:
    """A copy of a forwarded command (struct seal_command). `offset` and `length` are in bytes,
    `ttl` in ns. Of a copy, `slot` is the destination's file, `to_offset` the offset there."""

    ring: int
    handle: int
    op: int
    slot: int
    file: int
    offset: int
    length: int
    ttl: int
    to_offset: int


class SlotHold(SealObserver):
    """The hold of a tracked seal in a registration. Its slot is its guard; its anchor is that of
    the registration. As the seal's observer it keeps the slot like the seal."""

    def __init__(self, rings: Rings, parent: Seal, over: Callable[[int], None]) -> None:
        """`over` is called with the token of a seal that has ended."""
        self._rings, self._parent, self._over = rings, parent, over
        self._seal: Seal | None = None
        self._front = watchable(parent.hold)
        self.policy = int(lib.SEAL_POLICY_WAIT)

    @property
    def anchor(self) -> int:
        return self._parent.hold.anchor

    @property
    def apart(self) -> bool:
        return self._parent.hold.apart

    def change(self, verdict: Verdict) -> None:
        self.policy = guards.POLICIES[verdict]
        if self._seal is not None:
            self.changed(self._seal)

    def resize(self, range: ByteRange) -> None:
        """Nothing to do: changed() updates the slot."""

    def release(self) -> None:
        """Nothing to do: changed() has freed the slot when the seal ended."""

    def track(self, seal: Seal) -> None:
        """Observe the seal, and have reports name it."""
        self._seal = seal
        seal.observe(self)
        if self._front is not None:
            exclusive = seal.request.kind is Kind.EXCLUSIVE
            pid = seal.process.holder.pid
            self._front.track(Guard(seal.token, seal.effective, pid, exclusive, Verdict.WAIT))

    def changed(self, seal: Seal) -> None:
        """See SealObserver. Updates the slot from the seal; frees it when the seal has ended."""
        self._rings.keeper.set_slot(seal, self.policy)

    def ended(self, seal: Seal) -> None:
        self._seal = None
        if not seal.live:
            self._over(seal.token)
        if self._front is not None:
            self._front.untrack(seal.token)


class Tracking:
    """Tracks seals by the keeper's reports, and carries out forwarded commands. `copy` carries out
    a copy: it returns 0 or -errno, and the bytes copied, or raises Refusal."""

    def __init__(
        self,
        rings: Rings,
        recaller: Recaller,
        returns: Returns,
        tasks: Tasks,
        copy: Callable[[Command], Awaitable[tuple[int, int]]],
    ) -> None:
        self._copier = copy
        self.rings, self.recaller, self.returns, self.tasks = rings, recaller, returns, tasks
        self.grants, self.machine, self.table = rings.grants, rings.machine, rings.table
        self._commands: Counter[int] = Counter()  # under way, by the seal's token
        self._rereading: dict[int, asyncio.Task[None]] = {}  # by the registration's token
        # Tokens of tracked seals that have ended. What was reported of one before that, and is read
        # after it, must not bring it to life again.
        self._over: OrderedDict[int, None] = OrderedDict()

    # Reports of the keeper. They come on the event loop, in the order in which things happened.

    def reported(self, raw: Any) -> None:
        """Handle a struct seal_ring_report. `raw` is valid only during the call."""
        parent = self.rings.registration(raw.ring, raw.file)
        slot = _slot(raw.seal)
        if raw.kind == lib.SEAL_RING_OVER:
            self._ended(raw.ring, slot, int(raw.handle))
        elif raw.kind == lib.SEAL_RING_FORWARD:
            command = _command(raw)
            if command.op == lib.SEAL_CMD_COPY_RANGE:
                self.tasks.spawn("ring copy", self._copy(command))
                return
            if parent is not None and command.op == lib.SEAL_CMD_GRANT:
                self.tasks.spawn("registration", self._grant(parent, command))
                return
            seal = self._track(parent, command.ring, command.slot, slot) if parent else None
            self.tasks.spawn("ring command", self._serve(seal, slot, command))
        elif parent is not None and (seal := self._track(parent, raw.ring, raw.slot, slot)):
            self._recalled(parent, seal)

    def _ended(self, ring: int, slot: Slot, word: int) -> None:
        """A seal that was tracked before has ended untracked: publish its end, for the history."""
        state, seqid = state_of(word)
        self.machine.events.publish(
            "state",
            _id_of(ring, slot.id),
            **{"from": state_of(slot.word)[0], "to": state},
            step=Step.RETURN if state is State.RETURNED else Step.EXPIRE,
            reason="",
            seqid=seqid,
        )

    def _recalled(self, parent: Seal, seal: Seal) -> None:
        """The keeper has recalled the seal. The conflict itself is reported next, and says which
        range is wanted; if it does not come, the seal is recalled after _UNHEARD seconds."""
        if parent.drifted:
            self.recaller.lose(seal, parent.reason)
        elif not may(parent, Step.RECALL):
            self.recaller.recall(seal, parent.reason or "the registration is recalled")
        else:
            asyncio.get_running_loop().call_later(_UNHEARD, self._recall_if_used, seal)

    def _recall_if_used(self, seal: Seal) -> None:
        if seal.live and may(seal, Step.RECALL):
            self.recaller.recall(seal, "conflict")

    def unverified(self, raw: Any) -> None:
        """Handle a struct seal_report: an operation waits for the proof that nothing of a range is
        mapped which was returned natively without a check. `raw` is valid only during the call."""
        parent = self.table.of_token(raw.unproven)
        if parent is not None:
            operation = operation_of(raw)
            self.tasks.spawn("proof", self._prove(parent, int(raw.waiter), operation))

    # Tracking

    def _track(self, parent: Seal, ring: int, number: int, slot: Slot) -> Seal | None:
        """Track the seal in a slot of the registration `parent`. None when it has ended."""
        found = self.table.of_token(slot.id)
        state, seqid = state_of(slot.word)
        if found is not None or state not in LIVE or slot.id in self._over:
            return found
        seal = self._build(parent, RingPlace(
            ring, parent.place.file if parent.place else -1, number, parent.token,
            cookie=slot.cookie,
        ), slot, state, seqid)  # fmt: skip
        self.machine.journal.granted(seal)
        self.table.add(seal)
        holder = seal.process.holder
        asker = Peer(pid=holder.pid, uid=holder.uid, gid=-1)
        self.grants.registry.granted(seal.info(), seal.map, asker)
        self._observe(seal)
        if state not in _QUIET:
            # It was recalled while no service was running.
            seal.recalled_at, seal.reason = clock.now(), "conflict"
            self.recaller.fencing.resume(seal)
        return seal

    def _build(self, parent: Seal, place: RingPlace, slot: Slot, state: State, seqid: int) -> Seal:
        effective = slot.range.rounded(parent.filesystem.block_size)
        return Seal(
            token=slot.id,
            id=_id_of(place.ring, slot.id),
            request=msgspec.structs.replace(
                parent.request,
                offset=slot.range.offset,
                length=slot.range.length,
                iomode=_MODES[slot.iomode],
                ttl=0.0,
                key="",
            ),
            file=parent.file,
            path=parent.path,
            filesystem=parent.filesystem,
            range=slot.range,
            effective=effective,
            map=extents.clip(parent.map, effective),
            enforcers=parent.enforcers,
            hold=SlotHold(self.rings, parent, self._ended_tracked),
            process=parent.process.share(),
            accepted_risks=parent.accepted_risks,
            client=parent.client,
            mark=parent.mark,
            state=state,
            seqid=seqid,
            expires=slot.expires / NANO if slot.expires else None,
            deadline=slot.deadline / NANO if slot.deadline else None,
            place=place,
        )

    def _observe(self, seal: Seal) -> None:
        hold = seal.hold
        assert isinstance(hold, SlotHold)
        if seal.process.pidfd >= 0:
            self.rings.watch_holder(seal)
        else:
            seal.exited.set()
            if may(seal, Step.HOLDER_EXIT):
                asyncio.get_running_loop().call_soon(self.recaller.fencing.holder_exited, seal)
        hold.track(seal)

    def resume(self, seals: list[Seal]) -> None:
        """Take over the tracked seals of the previous service."""
        for seal in seals:
            parent = self.table.of_token(seal.place.parent) if seal.place else None
            if parent is not None:
                seal.hold = SlotHold(self.rings, parent, self._ended_tracked)
                self._observe(seal)

    def _ended_tracked(self, token: int) -> None:
        self._over[token] = None
        if len(self._over) > _REMEMBERED:
            self._over.popitem(last=False)

    def _untrack(self, seal: Seal) -> None:
        """Untrack a seal: the journal and the table forget it, and native code serves it."""
        self.machine.journal.forget(seal)
        self.table.remove(seal)
        seal.tell_ended()
        self.rings.keeper.untrack(seal)

    # Forwarded commands

    async def _serve(self, seal: Seal | None, slot: Slot, command: Command) -> None:
        status = 0
        if seal is None:
            over = state_of(slot.word)[0] not in LIVE
            status = 0 if over and command.op == lib.SEAL_CMD_RETURN else -errno.ENOENT
        else:
            self._commands[seal.token] += 1
            try:
                await self._carry_out(seal, command)
            except Refusal as refusal:
                status = -refusal.row.errno
            finally:
                self._commands[seal.token] -= 1
                if not self._commands[seal.token]:
                    del self._commands[seal.token]
            if seal.live and seal.state in _QUIET and seal.token not in self._commands:
                self._untrack(seal)
        self.rings.keeper.complete(command.ring, command.handle, status)

    async def _copy(self, command: Command) -> None:
        copied = 0
        try:
            status, copied = await self._copier(command)
        except Refusal as refusal:
            status = -refusal.row.errno
        except OSError as error:
            status = -(error.errno or errno.EIO)
        self.rings.keeper.complete(command.ring, command.handle, status, copied)

    async def _carry_out(self, seal: Seal, command: Command) -> None:
        match command.op:
            case lib.SEAL_CMD_RETURN:
                await self.returns.give_back(seal)
            case lib.SEAL_CMD_SHRINK:
                if not command.length:
                    raise Refusal("bad-request", "a part of no bytes")
                part = ByteRange(command.offset, command.length)
                await self.returns.give_back_part(seal, part)
            case lib.SEAL_CMD_DOWNGRADE:
                await self.returns.downgrade(seal)
            case lib.SEAL_CMD_MAPPED:
                await validation.validate(self.grants, seal, command.offset or None)
            case lib.SEAL_CMD_PROGRESS:
                self.recaller.progress(seal)
            case lib.SEAL_CMD_RENEW:
                self.machine.change_terms(seal, ttl=command.ttl / NANO)
                if may(seal, Step.RENEW):
                    self.machine.step(seal, Step.RENEW, "renewed by its holder")

    # Stale registrations: their map is read again, as a grant reads it

    async def _grant(self, parent: Seal, command: Command) -> None:
        try:
            await self._freshen(parent)
            status = int(lib.SEAL_RING_AGAIN)
        except Refusal as refusal:
            status = -refusal.row.errno
        self.rings.keeper.complete(command.ring, command.handle, status)

    async def _freshen(self, parent: Seal) -> None:
        """Read the map of a stale registration again. Commands that wait for it at the same time
        share one reading. Raises Refusal."""
        task = self._rereading.get(parent.token)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._reread(parent))
            self._rereading[parent.token] = task
            task.add_done_callback(functools.partial(self._reread_ended, parent.token))
        await asyncio.shield(task)

    def _reread_ended(self, token: int, task: asyncio.Task[None]) -> None:
        del self._rereading[token]
        # Retrieve the exception, so that asyncio does not log it: the waiting commands got it.
        _ = task.cancelled() or task.exception()

    async def _reread(self, parent: Seal) -> None:
        async with self.grants.lock(parent.file):
            if parent.state not in _QUIET or not parent.may_change:
                self._refuse_unless_used(parent)
                return
            try:
                pool = self.grants.workers.of(parent.file.device)
                found = await pool.run(self._read_behind_guard, parent)
                self._refuse_unless_used(parent)
                parent.map = found
                self.machine.journal.granted(parent)
                self.rings.keeper.revalidate(parent)
            finally:
                if parent.state in _QUIET:
                    parent.hold.change(parent.verdict)

    def _refuse_unless_used(self, parent: Seal) -> None:
        if parent.state not in _QUIET:
            raise Refusal("try-later", f"registration {parent.id} is {parent.state}")

    def _read_behind_guard(self, parent: Seal) -> ExtentMap:
        """The registration's map, read behind an arming guard as a grant reads it; runs in a
        worker. Extents that cannot be sealed are not an error: native code gets the suitable ones
        only, and refuses grants elsewhere."""
        host, sealed, anchor = self.grants.host, parent.effective, parent.hold.anchor
        parent.hold.change(Verdict.ARMING)
        if (front := watchable(parent.hold)) is not None:
            front.drain()
        fd = os.dup(anchor)
        try:
            size = os.fstat(fd).st_size
            target = Target(parent.file, fd, parent.path, size, parent.filesystem, writable=False)
            host.settle(target)
            found = host.read_map(fd, sealed)
            host.steady(target)
            check_still(found, host.read_map(fd, sealed), sealed, target)
        finally:
            os.close(fd)
        return extents.clip(found, sealed)

    # Proofs for unverified ranges

    async def _prove(self, parent: Seal, waiter: int, operation: Operation) -> None:
        """Repeat the proof until the client maps nothing of what the operation would change, then
        let the operation continue. If that takes longer than _PROMPT, the registration is recalled,
        so that the client is told and its grace starts."""
        part = wanted_of(parent, operation)
        pauses = iter(_PAUSES)
        recalled, pause = False, 0.0
        while parent.live:
            try:
                left = await self.returns.remaining_mappings(parent, part)
            except (Refusal, OSError) as error:
                left = [str(error)]
            if not left:
                self.rings.keeper.keeper.clear_unverified(waiter, parent.token)
                if recalled and may(parent, Step.SATISFY):
                    self.machine.step(
                        parent, Step.SATISFY, "nothing of the range is mapped any more"
                    )
                return
            pause = next(pauses, min(1.0, pause * 1.5))
            if pause > _PROMPT and not recalled:
                recalled = True
                self.recaller.recall(parent, f"conflict: {left[0]}", operation=operation)
            await clock.within(clock.now() + pause, parent.released)


def _id_of(ring: int, token: int) -> str:
    return f"{ring & 0xFFFFFFFF:08x}{token:016x}"


def _slot(raw: Any) -> Slot:
    range = ByteRange(raw.offset, raw.length)
    return Slot(raw.id, raw.word, range, raw.expires, raw.deadline, raw.cookie, raw.iomode)


def _command(raw: Any) -> Command:
    c = raw.command
    return Command(raw.ring, raw.handle, c.op, c.slot, c.file, c.offset, c.length, c.ttl, c.cookie)

"""PI channels: the service's side of the device path.

A channel does I/O on the blocks of one exclusive seal for the process that holds it. The holder
never has a descriptor of the block device: a channel takes offsets of the file, and only those
inside the seal's range, to the extents that were recorded at the grant. It ends with the seal's
use: any step of the seal but a renewal stops it, and the seal's guards are not let go before its
I/O has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from _sealsvc_pi_device import ffi, lib

from sealsvc.control.connection import Connection, Reply
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Kind, State
from sealsvc.core.states import Step
from sealsvc.enforce.base import Hold, Holds
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.integrity.block_device import unavailable
from sealsvc.integrity.errors import ErrorLog
from sealsvc.integrity.failures import as_error, failure_of, with_sense
from sealsvc.integrity.opening import Opened, described, open_channel, undo
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.events import Event
from sealsvc.protocol.integrity import PiError
from sealsvc.protocol.pi_device import PiChannel, PiPath, PiPathInfo
from sealsvc.rings.keeper import RingKeeper
from sealsvc.runtime.closing import close_later
from sealsvc.runtime.users import Received

log = logging.getLogger(__name__)

Settle = Callable[[Seal, ByteRange | None], Awaitable[bool]]

_USED = (State.GRANTED, State.ACTIVE)
# Steps of a seal that change nothing for its channel.
_KEEPS = frozenset({Step.GRANT, Step.VALIDATE, Step.RENEW})
MOST = 8  # channels of one user
_CLOSED_WITHIN = 0.5  # seconds until it is noticed that the holder has closed its end
_DRAIN = 5.0  # seconds that the service's end waits for I/O in flight
_TOLD = 10  # errors of one channel in a second
_TOLD_WITHIN = 2.0  # seconds that a channel waits for the disk of the queue of errors


class DrainedHolds(Holds):
    """The guards of a seal with a channel: released, or made smaller, when its I/O has ended. Until
    then whatever conflicts goes on waiting."""

    def __init__(self, holds: list[Hold], channel: Channel) -> None:
        super().__init__(holds)
        self._channel = channel

    def release(self) -> None:
        self.released = True
        self._channel.when_drained(super().release)

    def resize(self, range: ByteRange) -> None:
        self._channel.when_drained(lambda: super(DrainedHolds, self).resize(range))


@dataclass(eq=False)
class Channel:
    """`native` is its struct seal_channel, served by a thread until `drained`."""

    seal: Seal
    uid: int
    device: PiPathInfo
    native: Any
    drained: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: list[Callable[[], None]] = field(default_factory=list)

    def stop(self) -> None:
        """Does not wait: what is in flight ends, later requests are refused."""
        if not self.drained:
            lib.seal_channel_stop(self.native)

    def when_drained(self, call: Callable[[], None]) -> None:
        """Stop, and call it as soon as nothing is in flight; on the event loop."""
        if self.drained:
            call()
            return
        self._waiting.append(call)
        self.stop()

    def has_drained(self) -> None:
        self.drained = True
        lib.seal_channel_close(self.native)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()
        self.ended.set()


class ErrorThrottle:
    """Which errors of a channel are told: so many in a second, and how `more` there were with the
    next. Whoever makes them as fast as it can leaves the queue to others."""

    def __init__(self) -> None:
        self._second, self._count = 0.0, 0
        self._kept: PiError | None = None  # the last that was not told

    def due(self, error: PiError) -> PiError | None:
        """The error as it is to be told now."""
        now = time.monotonic()
        if now - self._second >= 1.0:
            self._second, self._count = now, 0
        self._count += 1
        before = 0 if self._kept is None else self._kept.more + 1
        error = msgspec.structs.replace(error, more=before)
        self._kept = None if self._count <= _TOLD else error
        return None if self._kept else error

    def rest(self) -> PiError | None:
        """At the end: the last that was not told."""
        return self._kept


class PiChannels:
    """`log` is the queue of errors; without one they are published as events alone. `rings` is None
    where no keeper serves any."""

    def __init__(self, grants: Grants, log: ErrorLog | None, rings: RingKeeper | None) -> None:
        self.grants, self.log, self.rings = grants, log, rings
        self.table = grants.machine.table
        self.channels: dict[str, Channel] = {}
        grants.machine.events.watch(self._hear)

    async def answer(
        self, connection: Connection, request: PiPath | PiChannel, fds: Received
    ) -> Reply:
        if isinstance(request, PiPath):
            return Reply(await self._describe(connection, request, fds))
        return await self._open(connection, request)

    async def stop(self) -> None:
        """At the service's end: wait a little for what is in flight."""
        for channel in self.channels.values():
            channel.stop()
        for _ in range(int(_DRAIN / 0.02)):
            if not self.channels:
                return
            await asyncio.sleep(0.02)
        log.warning("%d PI channels have I/O in flight", len(self.channels))

    def before(self, settle: Settle) -> Settle:
        """At a return: stop the seal's channel, and wait for its I/O, before `settle`."""

        async def drained_first(seal: Seal, part: ByteRange | None) -> bool:
            channel = self.channels.get(seal.id)
            if channel is not None:
                channel.stop()
                await channel.ended.wait()
            return await settle(seal, part) or channel is not None

        return drained_first

    # Looking

    async def _describe(self, connection: Connection, request: PiPath, fds: Received) -> PiPathInfo:
        if request.seal is not None:
            seal = self._seal(connection, request.seal)
            if seal.hold.anchor < 0:
                raise Refusal("try-later", f"seal {seal.id} has no descriptor", retry_after=1.0)
            fd = os.dup(seal.hold.anchor)
        elif len(fds):
            fd = fds.pop()
        else:
            raise Refusal("bad-request", "name a `seal`, or send a descriptor of the file")
        try:
            return await connection.server.users.look(connection.user, described, fd)
        finally:
            connection.user.close_later([fd])

    def _seal(self, connection: Connection, seal_id: str) -> Seal:
        seal = self.table.get(seal_id)
        if seal is None or not self.grants.policy.may_see(connection.peer, seal):
            raise Refusal("no-such-seal", f"there is no seal {seal_id}", {"seal": seal_id})
        return seal

    # Opening

    async def _open(self, connection: Connection, request: PiChannel) -> Reply:
        seal = self._seal(connection, request.seal)
        self._refuse(connection, seal)
        await self._refuse_second(seal)
        seqid = seal.seqid
        # The seal may end while a worker looks at its file, and its descriptor with it.
        file = os.dup(seal.hold.anchor)
        work = self.grants.workers.of(seal.file.device).submit(
            open_channel, self.grants, seal, request, file
        )
        work.add_done_callback(lambda _: close_later(seal.file.device, [file]))
        opening = asyncio.wrap_future(work)
        try:
            made = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                undo(opening.result())
            raise
        if seal.seqid != seqid or seal.id in self.channels or not seal.live:
            undo(made)
            raise Refusal("try-later", f"seal {seal.id} has changed meanwhile", retry_after=0.1)
        if request.ring:
            try:
                self._pass_on(seal, made)
            except Refusal:
                undo(made)
                raise
        channel = Channel(seal, connection.peer.uid, made.info.device, made.native)
        assert isinstance(seal.hold, Holds)
        seal.hold = DrainedHolds(_of(seal.hold), channel)
        self.channels[seal.id] = channel
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._serve, args=(loop, channel), name=f"pi {seal.id}", daemon=True
        ).start()
        return Reply(made.info, list(made.fds))

    def _pass_on(self, seal: Seal, made: Opened) -> None:
        """PI commands of the seal's ring go to the channel."""
        if seal.place is None or not seal.place.is_registration or self.rings is None:
            raise Refusal("bad-request", f"seal {seal.id} is no registration of a ring")
        try:
            self.rings.channel(seal.place.ring, seal.place.file, made.fds[0])
        except KeeperError as error:
            raise unavailable(f"the keeper passes no PI commands on: {error.strerror}") from error

    def _refuse(self, connection: Connection, seal: Seal) -> None:
        holder, asker = seal.process.holder, connection.process.holder
        if (holder.pid, holder.start_time) != (asker.pid, asker.start_time):
            raise Refusal("denied", f"process {holder.pid} holds seal {seal.id}, not the caller")
        if seal.request.kind is not Kind.EXCLUSIVE:
            raise unavailable(
                f"seal {seal.id} is shared: only under an exclusive one nobody else can bring the"
                " range back into the page cache"
            )
        if seal.state not in _USED:
            raise Refusal("try-later", f"seal {seal.id} is {seal.state}", retry_after=1.0)
        if self.grants.host.simulated:
            raise unavailable("a simulated file has no device")
        if seal.hold.anchor < 0:
            raise unavailable(f"{', '.join(seal.enforcers)} keeps no descriptor of {seal.path}")
        if sum(c.uid == connection.peer.uid for c in self.channels.values()) >= MOST:
            raise Refusal("limit-reached", f"a user may have {MOST} PI channels")

    async def _refuse_second(self, seal: Seal) -> None:
        """A channel that its holder has just closed is not one."""
        if (channel := self.channels.get(seal.id)) is None:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(channel.ended.wait(), _CLOSED_WITHIN)
            return
        raise Refusal("limit-reached", f"seal {seal.id} has a PI channel: close it first")

    # Serving

    def _serve(self, loop: asyncio.AbstractEventLoop, channel: Channel) -> None:
        """The channel's thread. A device that never completes keeps it, and the guards stay."""
        report, told = ffi.new("struct seal_channel_report *"), ErrorThrottle()
        while lib.seal_channel_serve(channel.native, report) == lib.SEAL_CHANNEL_FAILED:
            failed = failure_of(report, channel.device.interval)
            if error := told.due(as_error(channel.seal, channel.device, failed)):
                self._tell(loop, with_sense(channel.seal, channel.device, error))
        _call(loop, self._ended, channel)
        if error := told.rest():
            self._tell(loop, error)

    def _tell(self, loop: asyncio.AbstractEventLoop, error: PiError) -> None:
        """In the channel's thread, which goes on when the error is on disk."""
        told = threading.Event()
        _call(loop, self._number, error, told)
        told.wait(_TOLD_WITHIN)

    def _number(self, error: PiError, told: threading.Event) -> None:
        numbered = self.log.numbered([error]) if self.log else [error]
        writing = self.grants.workers.of(("integrity", "errors"), 1).submit(self._write, numbered)
        loop = asyncio.get_running_loop()
        writing.add_done_callback(lambda _: _call(loop, self._publish, numbered, told))

    def _write(self, numbered: list[PiError]) -> None:
        if self.log:
            self.log.write(numbered)

    def _publish(self, numbered: list[PiError], told: threading.Event) -> None:
        if self.log:
            self.log.tell(numbered)
        for error in numbered:
            self.grants.machine.events.publish("integrity", error.seal, error=error)
        told.set()

    def _ended(self, channel: Channel) -> None:
        self.channels.pop(channel.seal.id, None)
        channel.has_drained()

    def _hear(self, event: Event) -> None:
        """Before the actions of a step are carried out: nothing is begun any more from here on."""
        if event.name != "state" or event.data["step"] in _KEEPS:
            return
        if channel := self.channels.get(event.seal or ""):
            channel.stop()


def _call(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:  # the loop has ended
        log.debug("%s: the service has ended", call)


def _of(holds: Hold) -> list[Hold]:
    return holds.holds if isinstance(holds, Holds) else [holds]

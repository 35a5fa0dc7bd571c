"""Recalls by operators, and the delivery of recalls to the client of a seal."""

from __future__ import annotations

from sealsvc.control.connection import Connection
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.core.paths import lies_below
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.processes import Peer
from sealsvc.protocol.seals import (
    Recall,
    RecallAny,
    RecallOutcome,
    RecallReport,
    RecallSeals,
)
from sealsvc.rings.registrations import RingClient
from sealsvc.runtime import clock, closing
from sealsvc.service.foreign import ForeignNames
from sealsvc.service.router import Answers
from sealsvc.service.visible import Visible, no_such_seal

_RECALLS = 500  # outcomes in one answer
_CLOSED_WITHIN = 1.0  # seconds


class Recalling:
    """Answers RecallSeals: an operator recalls one seal, or all of a file, a file system, a
    process, or the service."""

    def __init__(
        self,
        grants: Grants,
        recaller: Recaller,
        enforcers: EnforcerSet,
        visible: Visible,
        foreign: ForeignNames,
    ) -> None:
        self.table, self.policy, self.recaller = grants.machine.table, grants.policy, recaller
        self.enforcers, self.visible, self.paths = enforcers, visible, visible.paths
        self.foreign = foreign

    def answers(self) -> Answers:
        return {RecallSeals: self._recall}

    async def _recall(self, connection: Connection, request: RecallSeals) -> RecallReport:
        peer = connection.peer
        path = request.path or request.filesystem
        await self.foreign.refuse(connection.process, request, path, request.pid)
        scopes = (request.seal, request.path, request.filesystem, request.pid, request.all or None)
        if sum(scope is not None for scope in scopes) != 1:
            raise Refusal(
                "bad-request", "name exactly one scope: seal, path, filesystem, pid or all"
            )
        if request.any is not None and request.pid is None:
            raise Refusal("bad-request", "`any` needs the scope pid: whose seals")
        if request.any is not None and request.below is not None:
            raise Refusal("bad-request", "`any` leaves the choice to the holder: not with `below`")
        if request.seqid is not None and request.seal is None:
            raise Refusal("bad-request", "`seqid` needs the scope seal: whose seqid")
        self.policy.operators_only(peer, "recall seals")
        reason = request.reason or "operator"
        if request.pid is not None and request.any is not None:
            chosen = self.recaller.recall_any(request.pid, request.any, request.grace, reason)
            if request.wait:
                await self._until_given_back(chosen, min(request.any, len(chosen)))
        else:
            chosen = await self._scope(peer, request)
            for seal in chosen:
                self.recaller.recall(seal, reason, part=request.range, grace=request.grace)
            if request.wait:
                await self._until_over(chosen, request.range)
        if request.filesystem is not None or request.all:
            await self._forget(chosen)
        chosen.sort(key=lambda seal: not seal.live)
        told = [RecallOutcome(seal=seal.id, state=seal.state) for seal in chosen[:_RECALLS]]
        return RecallReport(recalled=told, more=len(chosen) - len(told))

    async def _until_given_back(self, chosen: list[Seal], count: int) -> None:
        while sum(not seal.live for seal in chosen) < count:
            released = [seal.released for seal in chosen if seal.live]
            await clock.within(clock.now() + 60.0, *released)

    async def _until_over(self, chosen: list[Seal], part: ByteRange | None) -> None:
        """Wait until each seal has ended, or no longer overlaps `part`."""
        for seal in chosen:
            while seal.live and (part is None or seal.effective.overlaps(part)):
                await clock.within(clock.now() + (60.0 if part is None else 0.05), seal.released)

    async def _scope(self, peer: Peer, request: RecallSeals) -> list[Seal]:
        found = await self._named(peer, request)
        if request.below is None:
            return found
        # A hard link in `below` may name a file that was sealed by a path outside of it.
        inside = [seal for seal in found if lies_below(seal.path, request.below)]
        if request.seal is not None and not inside:
            raise no_such_seal(request.seal)
        return inside

    async def _named(self, peer: Peer, request: RecallSeals) -> list[Seal]:
        if request.seal is not None:
            return [self.visible.seal_at(peer, request.seal, request.seqid)]
        if request.path is not None:
            here = self.table.of_file(await self.paths.identify(request.path, request.below))
            part = request.range
            return [seal for seal in here if part is None or seal.effective.overlaps(part)]
        if request.filesystem is not None:
            where = await self.paths.identify(request.filesystem, request.below)
            return [seal for seal in self.table if seal.file.device == where.device]
        if request.pid is not None:
            return [s for s in self.table if s.process.holder.pid == request.pid]
        return list(self.table)

    async def _forget(self, recalled: list[Seal]) -> None:
        """Have the enforcers drop what they keep of these file systems, so that one without seals
        can be unmounted at once."""
        for filesystem in {seal.filesystem for seal in recalled}:
            for enforcer in self.enforcers.available:
                enforcer.forget(filesystem)
            await closing.closed(filesystem.device, _CLOSED_WITHIN)


def push(seal: Seal, message: Recall | RecallAny) -> bool:
    """Deliver a recall to the client of the seal: its connection or its ring. False when there is
    none that takes it."""
    client = seal.client
    if isinstance(client, RingClient):
        return client.tell(seal, message)
    return isinstance(client, Connection) and client.send(message)

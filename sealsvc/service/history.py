"""Handlers of queries to the registry: checks who may see what, and compares recorded maps with
present ones."""

from __future__ import annotations

import os
from typing import get_args

import msgspec

from sealsvc.control.connection import Connection
from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.lifecycle.policy import Policy
from sealsvc.linux import filesystem
from sealsvc.linux.host import Host
from sealsvc.linux.processes import Peer
from sealsvc.protocol.base import MAX_MESSAGE
from sealsvc.protocol.history import (
    AuditTrail,
    ConflictHistory,
    History,
    MapChanges,
    MapDifference,
    PastConflicts,
    RegistryAnswer,
    RegistryRequest,
    SealHistory,
    SealRecord,
    Steps,
    Trail,
)
from sealsvc.registry import Registry
from sealsvc.registry.queries import Queries
from sealsvc.runtime.limits import Asked
from sealsvc.runtime.workers import Workers
from sealsvc.service.router import Answers

# Most rows in one answer. A conflict may have a path of 4 KiB, and a message has 64 KiB.
_MOST = 40  # conflicts
_SEALS = 128  # seals; the page is also cut to _ROOM
_ROOM = MAX_MESSAGE - 1024  # bytes
_ENTRIES = 20  # entries of the audit trail
_CHANGES = 200  # changes of a map


class Historian:
    """Answers requests for history. Users see what concerns their own seals, operators all."""

    def __init__(self, registry: Registry, host: Host, policy: Policy, workers: Workers) -> None:
        self._registry, self._host, self._policy, self._workers = registry, host, policy, workers

    def answers(self) -> Answers:
        return dict.fromkeys(get_args(RegistryRequest), self._answer)

    async def _answer(self, connection: Connection, request: RegistryRequest) -> RegistryAnswer:
        peer = connection.peer
        asker = self._policy.asker(peer.uid, request.principal)
        match request:
            case History():
                return await self._seals(peer, asker, request)
            case Steps():
                await self._seal(peer, asker, request.seal)
                return await self._registry.ask(asker, Queries.transitions, request.seal)
            case PastConflicts():
                return await self._conflicts(peer, asker, request)
            case MapChanges():
                return await self._changes(peer, asker, request)
            case Trail():
                return await self._trail(peer, asker, request)
        self._operators_only(peer)
        return await self._registry.ask(asker, Queries.verify)

    async def _seals(self, peer: Peer, asker: Asked, request: History) -> SealHistory:
        wanted = request.wanted
        if not self._policy.is_operator(peer):
            if wanted.uid not in (None, peer.uid):
                raise Refusal("denied", f"uid {peer.uid} may only ask for its own seals")
            wanted = msgspec.structs.replace(wanted, uid=peer.uid)
        limit = min(request.limit, _SEALS)
        asked = (wanted, request.after, limit, _ROOM)
        return await self._registry.ask(asker, Queries.history, *asked)

    async def _conflicts(self, peer: Peer, asker: Asked, request: PastConflicts) -> ConflictHistory:
        if request.seal is None:
            self._operators_only(peer)
        else:
            await self._seal(peer, asker, request.seal)
        return await self._registry.ask(
            asker,
            Queries.conflicts,
            request.after,
            min(request.limit, _MOST),
            seal=request.seal,
            pid=request.pid,
            since=request.since,
            until=request.until,
        )

    async def _trail(self, peer: Peer, asker: Asked, request: Trail) -> AuditTrail:
        self._operators_only(peer)
        return await self._registry.ask(
            asker,
            Queries.audit,
            request.after,
            min(request.limit, _ENTRIES),
            kind=request.kind,
            seal=request.seal,
            since=request.since,
            until=request.until,
        )

    async def map_at_grant(self, peer: Peer, principal: str, seal: str) -> ExtentMap:
        """The map of a seal at its grant, an (n, 4) array (core/extents.py). Raises Refusal, for
        example `no-such-seal` when nothing is recorded that the peer may see."""
        asker = self._policy.asker(peer.uid, principal)
        await self._seal(peer, asker, seal)
        return await self._registry.ask(asker, Queries.map_at_grant, seal)

    async def _changes(self, peer: Peer, asker: Asked, request: MapChanges) -> MapDifference:
        record = await self._seal(peer, asker, request.seal)
        pool = self._workers.of(filesystem.place_at(record.path))
        present = await pool.run(self._present, record)
        limit = min(request.limit, _CHANGES)
        return await self._registry.ask(asker, Queries.map_difference, request.seal, present, limit)

    def _present(self, record: SealRecord) -> ExtentMap:
        target = self._host.open_path(record.path, self._policy.roots, writable=False)
        try:
            if target.file != record.file:
                raise Refusal(
                    "no-such-file", f"{record.path} is another file by now", {"path": record.path}
                )
            return self._host.read_map(target.fd, record.effective)
        finally:
            os.close(target.fd)

    async def _seal(self, peer: Peer, asker: Asked, seal: str) -> SealRecord:
        record = await self._registry.ask(asker, Queries.seal, seal)
        if record.holder_uid != peer.uid and not self._policy.is_operator(peer):
            raise Refusal("no-such-seal", f"nothing is recorded of seal {seal}", {"seal": seal})
        return record

    def _operators_only(self, peer: Peer) -> None:
        if not self._policy.is_operator(peer):
            raise Refusal("denied", f"uid {peer.uid} may only ask for its own seals")

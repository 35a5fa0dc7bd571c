"""Handlers of the requests of holders: return, downgrade, renew, mapped, progress, forgotten, and
Reclaim after a restart of the service."""

from __future__ import annotations

from sealsvc.control.connection import Connection
from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.core.states import Step
from sealsvc.lifecycle import validation
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.returns import Returns
from sealsvc.linux.processes import Peer
from sealsvc.protocol.messages import Result
from sealsvc.protocol.seals import (
    Downgrade,
    Forgotten,
    Mapped,
    RecallProgress,
    Reclaim,
    Renew,
    Return,
    SealInfo,
)
from sealsvc.service.metrics import Metrics
from sealsvc.service.router import Answers
from sealsvc.service.visible import Visible


class Holding:
    """Answers requests of holders about their seals."""

    def __init__(
        self,
        grants: Grants,
        returns: Returns,
        recaller: Recaller,
        visible: Visible,
        metrics: Metrics,
    ) -> None:
        self.grants, self.machine, self.returns, self.recaller = (
            grants,
            grants.machine,
            returns,
            recaller,
        )
        self.visible, self.metrics = visible, metrics

    def answers(self) -> Answers:
        return {
            Return: self._return,
            Downgrade: self._downgrade,
            Renew: self._renew,
            RecallProgress: self._progress,
            Forgotten: self._forgotten,
            Mapped: self._mapped,
            Reclaim: self._reclaim,
        }

    async def _downgrade(self, connection: Connection, request: Downgrade) -> SealInfo:
        seal = self.visible.seal_at(connection.peer, request.seal, request.seqid)
        await self.returns.downgrade(seal)
        return seal.info()

    async def _progress(self, connection: Connection, request: RecallProgress) -> SealInfo:
        seal = self.visible.seal_at(connection.peer, request.seal, request.seqid)
        self.recaller.progress(seal)
        return seal.info()

    async def _mapped(self, connection: Connection, request: Mapped) -> Result:
        seal = self.visible.seal_at(connection.peer, request.seal, request.seqid)
        return await validation.validate(self.grants, seal, request.address)

    async def _return(self, connection: Connection, request: Return) -> SealInfo:
        with self.metrics.timed("return"):
            return await self._given_back(connection.peer, request)

    async def _given_back(self, peer: Peer, request: Return) -> SealInfo:
        seal = self.visible.seal_at(peer, request.seal, request.seqid)
        if request.range is None:
            await self.returns.give_back(seal, f"given back by process {peer.pid}")
        else:
            await self.returns.give_back_part(seal, request.range)
        return seal.info()

    async def _renew(self, connection: Connection, request: Renew) -> SealInfo:
        seal = self.visible.seal_at(connection.peer, request.seal, request.seqid)
        ttl = seal.request.ttl if request.ttl is None else request.ttl
        self.machine.change_terms(seal, ttl=ttl)
        if states.allowed(seal.state, Step.RENEW):
            self.machine.step(seal, Step.RENEW, "renewed by its holder")
        self.machine.events.publish("renewed", seal.id, ttl=ttl)
        return seal.info()

    async def _forgotten(self, connection: Connection, request: Forgotten) -> SealInfo:
        seal = self.visible.seal(connection.peer, request.seal)
        if not await self.returns.forget(seal) and seal.live:
            self.recaller.fencing.forgotten(seal)
        return seal.info()

    async def _reclaim(self, connection: Connection, request: Reclaim) -> SealInfo:
        seal = self.visible.seal(connection.peer, request.seal)
        if isinstance(seal.client, Connection) and seal.client.open:
            if seal.client is not connection:
                raise Refusal(
                    "seal-conflict", f"another connection receives the recalls of seal {seal.id}"
                )
        else:
            seal.client = connection
        if seal.state in (State.RECALLED, State.LOST):
            self.machine.tell(seal)
        return seal.info()

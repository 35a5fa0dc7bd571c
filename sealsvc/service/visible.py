"""Finds seals for a client by id and by path, among those that it may see."""

from __future__ import annotations

import time

from sealsvc.core.errors import Refusal
from sealsvc.lifecycle.paths import Paths
from sealsvc.lifecycle.policy import Policy
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.linux.processes import Peer
from sealsvc.runtime import even_time


def no_such_seal(seal_id: str) -> Refusal:
    return Refusal("no-such-seal", f"there is no seal {seal_id}", {"seal": seal_id})


class Visible:
    """The seals that a client may see: a user's own, and all for operators. Others are treated as
    if they did not exist."""

    def __init__(self, table: SealTable, policy: Policy, paths: Paths) -> None:
        self.table, self.policy, self.paths = table, policy, paths

    def seal(self, peer: Peer, seal_id: str) -> Seal:
        """The live seal with this id. Raises Refusal `no-such-seal`."""
        seal = self.table.get(seal_id)
        if seal is None or not self.policy.may_see(peer, seal):
            raise no_such_seal(seal_id)
        return seal

    def seal_at(self, peer: Peer, seal_id: str, seqid: int | None) -> Seal:
        """The live seal with this id and seqid (None: any). Raises Refusal `no-such-seal`, or
        `stale-seqid` when it has changed since the requester saw it."""
        seal = self.seal(peer, seal_id)
        if seqid is not None and seqid != seal.seqid:
            raise Refusal(
                "stale-seqid",
                f"seal {seal.id} has seqid {seal.seqid}, the request {seqid}",
                {"seqid": seal.seqid},
            )
        return seal

    def seen(self, peer: Peer) -> list[Seal]:
        """All live seals that the peer may see."""
        # Of others' seals nothing is looked at: a request costs as much as its user's own.
        every = self.policy.is_operator(peer)
        return list(self.table) if every else self.table.of_user(peer.uid)

    async def of_path(
        self, peer: Peer, seals: list[Seal], path: str, below: list[str] | None
    ) -> list[Seal]:
        """Those of `seals` that are on the file at `path`. Raises Refusal `no-such-file` for
        operators; other users get the seals that were granted with this path, after a time that
        does not depend on whether the file exists."""
        operator, began = self.policy.is_operator(peer), time.monotonic()
        try:
            file = await self.paths.identify(path, below if operator else ["/"])
        except Refusal:
            if operator:
                raise
            return [seal for seal in seals if seal.path == path]
        finally:
            if not operator:
                await even_time.passes(began)
        here = {seal.id for seal in self.table.of_file(file)}
        return [seal for seal in seals if seal.id in here]

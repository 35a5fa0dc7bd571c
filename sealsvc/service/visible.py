"""Which seals a client may see, by id, and by the path of a file."""

from __future__ import annotations

import time

from sealsvc.core.errors import Refusal
from sealsvc.lifecycle.paths import Paths
from sealsvc.lifecycle.policy import Policy
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.linux.processes import Peer
from sealsvc.runtime import even_time


class Visible:
    """What a client may see: its own seals, an operator all. What it may not see is not there."""

    def __init__(self, table: SealTable, policy: Policy, paths: Paths) -> None:
        self.table, self.policy, self.paths = table, policy, paths

    def seal(self, peer: Peer, seal_id: str) -> Seal:
        seal = self.table.get(seal_id)
        if seal is None or not self.policy.may_see(peer, seal):
            raise Refusal("no-such-seal", f"there is no seal {seal_id}", {"seal": seal_id})
        return seal

    def seal_at(self, peer: Peer, seal_id: str, seqid: int | None) -> Seal:
        """The seal, if it is still as whoever asks knows it."""
        seal = self.seal(peer, seal_id)
        if seqid is not None and seqid != seal.seqid:
            raise Refusal(
                "stale-seqid",
                f"seal {seal.id} has seqid {seal.seqid}, the request {seqid}",
                {"seqid": seal.seqid},
            )
        return seal

    def seen(self, peer: Peer) -> list[Seal]:
        return [seal for seal in self.table if self.policy.may_see(peer, seal)]

    async def of_path(
        self, peer: Peer, seals: list[Seal], path: str, below: list[str] | None
    ) -> list[Seal]:
        """The seals on the file at `path`. Only operators are told that a file does not exist."""
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

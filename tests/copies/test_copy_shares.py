"""How many copies and relocations one who asks may have under way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from sealsvc.copies.jobs import CopyJobs
from sealsvc.copies.relocation.job import Relocations
from sealsvc.core.errors import Refusal
from sealsvc.lifecycle.policy import Policy
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import JobKind
from sealsvc.protocol.relocation import Goal, Relocate
from sealsvc.runtime.config import PolicySection

POLICY = Policy(PolicySection(operators=[0, 990]))
API = Peer(pid=1, uid=990, gid=990)
ROOT = Peer(pid=1, uid=0, gid=0)
USER = Peer(pid=1, uid=1000, gid=1000)


def copies(*running: tuple[Peer, str]) -> Any:
    jobs = [
        SimpleNamespace(uid=peer.uid, info=SimpleNamespace(kind=JobKind.COPY, principal=principal))
        for peer, principal in running
    ]
    return SimpleNamespace(_policy=POLICY, _jobs=SimpleNamespace(running=jobs))


@pytest.mark.parametrize(
    ("peer", "principal", "most"),
    [(API, "alice", 4), (USER, "", 2), (USER, "made up", 2), (ROOT, "", 8)],
)
def test_copies(peer: Peer, principal: str, most: int) -> None:
    running = [(peer, principal)] * (most - 1)
    CopyJobs._refuse_too_many(copies(*running), peer, principal)
    running.append((peer, principal))
    with pytest.raises(Refusal, match=f"{most} of them|8 copies"):
        CopyJobs._refuse_too_many(copies(*running), peer, principal)
    if most < 8:
        CopyJobs._refuse_too_many(copies(*running), API, "bob")
        CopyJobs._refuse_too_many(copies(*running), ROOT, "")


def test_users_together_leave_one_for_an_operator() -> None:
    running = [(USER, ""), (USER, "")] + [(API, name) for name in "aaabc"]
    for peer, principal in ((Peer(2, 1001, 1001), ""), (API, "d")):
        with pytest.raises(Refusal, match="7 copies"):
            CopyJobs._refuse_too_many(copies(*running), peer, principal)
    CopyJobs._refuse_too_many(copies(*running), ROOT, "")


def test_relocations() -> None:
    async def started(principal: str, *running: str) -> str:
        async def begun(record: Any) -> str:
            return str(record.principal)

        async def identified(*_: object) -> Any:
            return SimpleNamespace(device=1, inode=2)

        there: Any = SimpleNamespace(
            _grants=SimpleNamespace(policy=POLICY, host=SimpleNamespace(simulated=False)),
            _jobs=SimpleNamespace(paths=SimpleNamespace(identify=identified)),
            _running={(1, n): SimpleNamespace(principal=p) for n, p in enumerate(running)},
            _begin=begun,
        )
        request = Relocate(id=1, path="/a", goal=Goal(defrag=True), principal=principal)
        return str(await Relocations.start(there, API, request))

    assert asyncio.run(started("alice", "alice")) == "alice"
    with pytest.raises(Refusal, match="2 of them"):
        asyncio.run(started("alice", "alice", "alice"))
    assert asyncio.run(started("bob", "alice", "alice")) == "bob"
    assert asyncio.run(started("", "alice", "alice", "bob")) == ""

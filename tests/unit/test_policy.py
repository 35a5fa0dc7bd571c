"""The policy: who may ask for what, limits, and risks."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Fence, Gap, Holder, IoMode, Kind
from sealsvc.lifecycle.policy import Policy, RingShare, longest_recall
from sealsvc.lifecycle.seals import SealTable
from sealsvc.linux.processes import Peer
from sealsvc.protocol.seals import Conditions, Grant, HolderSpec
from sealsvc.runtime.config import PolicySection
from tests.support.lifecycle import BLOCK, lifecycle

OPERATOR, USER = Peer(1, 0, 0), Peer(2, 1000, 1000)
GAP = Gap(risk="loop-device", kinds=[Kind.SHARED], why="a loop device writes below every event")
WIDE = Gap(risk="overlay-truncate", kinds=[Kind.SHARED, Kind.EXCLUSIVE], why="not seen")


def policy(**section: Any) -> Policy:
    return Policy(PolicySection(operators=[0], **section))


def code_of(call: Any, *arguments: Any) -> str:
    """The code that the call refuses with; empty when it does not."""
    try:
        call(*arguments)
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.mark.parametrize(
    ("peer", "terms", "descriptors", "code"),
    [
        (USER, {}, 1, ""),
        (USER, {}, 0, "bad-request"),
        (USER, {"path": "/a"}, 1, "bad-request"),
        (USER, {"path": "/a"}, 0, "denied"),
        (OPERATOR, {"path": "/a"}, 0, ""),
        (USER, {"holder": HolderSpec(pid=7)}, 1, "denied"),
        (OPERATOR, {"holder": HolderSpec(pid=7)}, 1, ""),
        (USER, {"holder": HolderSpec(pidfd=True)}, 1, "bad-request"),
        (USER, {"holder": HolderSpec(pidfd=True)}, 2, ""),
        (OPERATOR, {"path": "/a", "grace": 301.0}, 0, "denied"),
        (USER, {"kind": Kind.EXCLUSIVE, "iomode": IoMode.READ}, 1, "denied"),
        (OPERATOR, {"kind": Kind.EXCLUSIVE, "iomode": IoMode.READ}, 1, ""),
    ],
)
def test_who_may_ask_for_a_seal(
    peer: Peer, terms: dict[str, Any], descriptors: int, code: str
) -> None:
    request = Grant(**({"id": 1, "kind": Kind.SHARED} | terms))
    assert code_of(policy().authorise_grant, peer, request, descriptors) == code


def test_who_may_only_read_a_file_gets_terms_that_end() -> None:
    rules = policy(max_reader_grace=30.0)
    request = Grant(id=1, iomode=IoMode.READ, fence=Fence.NONE, grace=10.0)
    assert rules.terms_of_reader(USER, request).fence is Fence.KILL
    assert rules.terms_of_reader(OPERATOR, request) is request
    refusing = msgspec.structs.replace(request, conflict=Conflict.REFUSE)
    assert code_of(rules.terms_of_reader, USER, refusing) == "denied"
    long = msgspec.structs.replace(request, grace=31.0)
    assert code_of(rules.terms_of_reader, USER, long) == "denied"


def test_who_asks_is_the_principal_of_an_operator_alone() -> None:
    rules = policy()
    assert rules.asker(0, "alice") == (0, "alice")
    assert rules.asker(1000, "alice") == (1000, ""), "a name that anybody else gives is ignored"


def test_what_lies_outside_does_not_exist() -> None:
    rules, only = policy(), Conditions(below=["/a"])
    assert code_of(rules.refuse_outside, only, "/a/b") == ""
    with pytest.raises(Refusal) as refused:
        rules.refuse_outside(only, "/b")
    assert (refused.value.code, refused.value.details) == ("no-such-file", {})
    assert "/b" not in refused.value.message
    holder = Holder(pid=7, start_time=1, uid=1001, comm="x")
    mine = Conditions(uids=[1000])
    assert code_of(rules.refuse_other_user, mine, holder) == "no-such-holder"
    assert code_of(rules.refuse_other_user, Conditions(), holder) == ""


def test_a_gap_is_accepted_by_name_or_with_all() -> None:
    assert policy(accept_risks=["loop-device"]).accept([GAP]) == ["loop-device"]
    assert policy(accept_risks=["all"]).accept([GAP, WIDE]) == ["loop-device", "overlay-truncate"]
    with pytest.raises(Refusal, match="kind exclusive") as refused:
        policy().accept([GAP])
    assert refused.value.details == {"risks": ["loop-device"]}
    with pytest.raises(Refusal) as refused:
        policy(accept_risks=["loop-device"]).accept([GAP, WIDE])
    assert "exclusive" not in refused.value.message, "that would not help"


def test_a_pin_without_a_fence_is_refused() -> None:
    rules = policy()
    endless = Grant(id=1, fence=Fence.NONE)
    assert code_of(rules.refuse_endless_wait, endless, ["fanotify", "pin"]) == "denied"
    assert code_of(rules.refuse_endless_wait, endless, ["fanotify"]) == ""
    fenced = Grant(id=1, fence=Fence.KILL)
    assert code_of(rules.refuse_endless_wait, fenced, ["pin"]) == ""


@pytest.mark.parametrize(
    "limit", ["max_seals", "max_seals_per_file", "max_seals_per_holder", "max_seals_per_filesystem"]
)
def test_each_limit_is_named_when_it_is_reached(limit: str) -> None:
    async def scene() -> None:
        section = PolicySection(roots=["/sim"], operators=[os.getuid()], **{limit: 2})
        async with lifecycle(section) as parts:
            for _ in range(2):
                await parts.grant(length=BLOCK)
            with pytest.raises(Refusal) as refused:
                await parts.grant(length=BLOCK)
            assert refused.value.code == "limit-reached"
            assert refused.value.details == {"limit": limit}

    asyncio.run(scene())


def test_a_users_bytes_are_limited() -> None:
    async def scene() -> None:
        section = PolicySection(roots=["/sim"], operators=[os.getuid()], max_bytes_per_user=BLOCK)
        async with lifecycle(section) as parts:
            seal = await parts.grant(length=BLOCK)
            with pytest.raises(Refusal) as refused:
                await parts.grant(length=1)
            assert refused.value.details == {"limit": "max_bytes_per_user"}
            await parts.returns.give_back(seal)
            await parts.grant(length=BLOCK)

    asyncio.run(scene())


def test_no_seal_is_made_while_those_of_the_file_are_recalled() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(grace=40.0)
            parts.recaller.recall(seal, "asked for")
            with pytest.raises(Refusal) as refused:
                await parts.grant()
            assert refused.value.code == "try-later"
            assert refused.value.details == {"seals": [seal.id]}
            assert refused.value.retry_after == pytest.approx(40.0, abs=30.0)

    asyncio.run(scene())


def test_rings_of_one_user_leave_as_many_slots_for_others() -> None:
    rules, table = policy(max_seals=100), SealTable()
    mine = RingShare(USER.uid, 30, 0)
    assert code_of(rules.admit_ring, USER, 35, 0, [mine], table) == "limit-reached"
    assert code_of(rules.admit_ring, USER, 10, 0, [mine], table) == ""
    assert code_of(rules.admit_ring, OPERATOR, 70, 0, [mine], table) == ""
    assert code_of(rules.admit_ring, OPERATOR, 71, 0, [mine], table) == "limit-reached"
    large = RingShare(USER.uid, 1, 64 << 20)
    assert code_of(rules.admit_ring, USER, 1, 1, [large], table) == "limit-reached"


def test_progress_of_a_readers_seal_is_bounded_closer() -> None:
    async def scene() -> None:
        section = PolicySection(
            roots=["/sim"], operators=[4711], max_recall=600.0, max_reader_grace=30.0
        )
        async with lifecycle(section) as parts:
            reading = await parts.grant(iomode=IoMode.READ, fence=Fence.KILL)
            writing = await parts.grant(iomode=IoMode.RW, fence=Fence.KILL)
            assert longest_recall(section, reading) == 30.0
            assert longest_recall(section, writing) == 600.0

    asyncio.run(scene())

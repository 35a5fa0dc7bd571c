"""Recalls: what is wanted, what is merged, what moves a deadline, and who is asked."""

from __future__ import annotations

import asyncio
import os

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, Kind, Operation, State
from sealsvc.lifecycle.recall import wanted_of
from sealsvc.runtime import clock
from sealsvc.runtime.config import PolicySection
from tests.support.lifecycle import BLOCK, SIZE, lifecycle
from tests.support.waiting import PATIENCE


@pytest.fixture(autouse=True)
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes in a test is over with it."""
    monkeypatch.setattr(clock, "_ahead", 0.0)


def test_a_conflict_recalls_and_later_ones_join_it() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(grace=100.0)
            first = parts.conflict(0)
            assert (seal.state, seal.wanted) == (State.RECALLED, ByteRange(0, BLOCK))
            parts.conflict(4 * BLOCK)
            assert seal.wanted == ByteRange(0, 5 * BLOCK), "the hull of both"
            assert [recall.wanted for recall in parts.recalls] == [
                ByteRange(0, BLOCK), ByteRange(0, 5 * BLOCK)
            ]  # fmt: skip
            parts.conflict(BLOCK)
            assert len(parts.recalls) == 2, "nothing more is wanted"
            assert parts.recaller.counters == {
                "conflicts": 3, "recalls": 1, "recalls_merged": 2
            }  # fmt: skip
            assert len(parts.recaller.waiting) == 3
            await parts.returns.give_back(seal)
            parts.enforcer.drain()
            assert first.done.result(timeout=0) == 0
            assert not parts.recaller.waiting
            assert len(parts.told("conflict-ended")) == 3

    asyncio.run(scene())


def test_an_earlier_deadline_is_told_and_a_later_one_is_not() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(grace=100.0)
            parts.recaller.recall(seal, "maintenance")
            before = seal.deadline
            parts.recaller.recall(seal, "no hurry", grace=1000.0)
            assert seal.deadline == before
            assert len(parts.recalls) == 1
            parts.recaller.recall(seal, "hurry", grace=10.0)
            assert seal.deadline is not None
            assert before is not None
            assert seal.deadline < before
            assert len(parts.recalls) == 2

    asyncio.run(scene())


def test_a_seal_that_refuses_is_not_recalled_by_a_conflict() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(conflict=Conflict.REFUSE)
            assert parts.conflict().done.result(timeout=0) != 0
            assert seal.state is State.GRANTED
            parts.conflict()
            parts.recaller.publish_repeated()
            told = parts.told("conflict")
            assert len(told) == 2, "the first, and one for all that repeat it"
            assert told[1].data["repeated"] == 1

    asyncio.run(scene())


def test_progress_moves_the_deadline_up_to_the_policys_maximum() -> None:
    async def scene() -> None:
        section = PolicySection(roots=["/sim"], operators=[os.getuid()], max_recall=30.0)
        async with lifecycle(section) as parts:
            seal = await parts.grant(grace=20.0)
            with pytest.raises(Refusal, match="nothing is under way"):
                parts.recaller.progress(seal)
            parts.recaller.recall(seal, "asked for")
            began = seal.recalled_at
            assert began is not None
            clock.advance(15.0)
            parts.recaller.progress(seal)
            assert seal.deadline == pytest.approx(began + 30.0)
            parts.recaller.progress(seal)
            assert [step.step for step in seal.ladder] == ["notify", "progress"]

    asyncio.run(scene())


def test_of_many_the_holder_chooses_and_the_oldest_go_when_it_does_not() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seals = [await parts.grant(length=BLOCK) for _ in range(4)]
            own = parts.recaller.recall_any(os.getpid(), 2, 5.0, "pressure")
            assert set(own) == set(seals)
            assert [asked.count for asked in parts.recalls_any] == [2]
            await parts.returns.give_back(seals[3])
            clock.advance(10.0)
            async with asyncio.timeout(PATIENCE):
                while seals[0].state is not State.RECALLED:
                    await asyncio.sleep(0.01)
            assert [seal.state for seal in seals[1:3]] == [State.GRANTED] * 2

    asyncio.run(scene())


def test_pressure_asks_the_largest_holder_once_in_a_while() -> None:
    async def scene() -> None:
        section = PolicySection(roots=["/sim"], operators=[os.getuid()], max_seals=4, pressure=0.5)
        async with lifecycle(section) as parts:
            for _ in range(2):
                await parts.grant(length=BLOCK)
            parts.recaller.relieve()
            assert not parts.recalls_any
            await parts.grant(length=BLOCK)
            parts.recaller.relieve()
            parts.recaller.relieve()
            assert [(asked.pid, asked.count) for asked in parts.recalls_any] == [(os.getpid(), 1)]

    asyncio.run(scene())


def test_a_ttl_ends_in_courtesy_and_courtesy_at_a_conflict() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(ttl=10.0)
            parts.recaller.expire()
            assert seal.state is State.GRANTED
            clock.advance(11.0)
            parts.recaller.expire()
            assert seal.state is State.COURTESY
            assert parts.conflict().done.result(timeout=0) == 0
            assert seal.state is State.EXPIRED

    asyncio.run(scene())


def test_a_lost_seal_is_told_once() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            parts.recaller.lose(seal, "its map has changed")
            parts.recaller.lose(seal, "its map has changed again")
            assert seal.state is State.LOST
            assert [(recall.changed, recall.reason) for recall in parts.recalls] == [
                (True, "its map has changed")
            ]

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("operation", "offset", "length", "wanted"),
    [
        ("fallocate-punch-hole", 1, 1, ByteRange(0, BLOCK)),
        ("truncate", 2 * BLOCK, 0, ByteRange(2 * BLOCK, SIZE - 2 * BLOCK)),
        ("fallocate-collapse-range", 2 * BLOCK, BLOCK, ByteRange(2 * BLOCK, SIZE - 2 * BLOCK)),
    ],
)
def test_what_an_operation_reaches_is_wanted(
    operation: str, offset: int, length: int, wanted: ByteRange
) -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant()
            met = Operation(name=operation, offset=offset, length=length, pid=1)
            assert wanted_of(seal, met) == wanted

    asyncio.run(scene())


def test_of_an_exclusive_seal_everything_is_wanted() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(kind=Kind.EXCLUSIVE)
            met = Operation(name="fallocate-punch-hole", offset=0, length=1, pid=1)
            assert wanted_of(seal, met) == seal.range
            assert wanted_of(seal, met, ByteRange(BLOCK, 1)) == ByteRange(BLOCK, 1)

    asyncio.run(scene())

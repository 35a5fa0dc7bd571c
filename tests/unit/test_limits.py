"""Rates and turns, without a service."""

from __future__ import annotations

import asyncio

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.integrity import shares
from sealsvc.integrity.shares import Shares
from sealsvc.lifecycle.policy import Policy
from sealsvc.runtime import clock
from sealsvc.runtime.config import PolicySection
from sealsvc.runtime.limits import Asked, FairQueue, RateLimit, leaves_as_many


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that runs only when told to."""
    time = {"now": 1000.0}
    monkeypatch.setattr(clock, "now", lambda: time["now"])
    return time


def test_whatever_some_take_there_is_something_for_the_next() -> None:
    taken = []
    for _ in range(5):
        mine, before = 0, sum(taken)
        while leaves_as_many(mine, before + mine, 100):
            mine += 1
        taken.append(mine)
    assert taken == [50, 25, 12, 6, 3]


def test_a_user_has_a_burst_and_then_the_rate(still: dict[str, float]) -> None:
    limit = RateLimit(rate=2.0, burst=3)
    for _ in range(3):
        limit.take((1, ""))
    with pytest.raises(Refusal) as refused:
        limit.take((1, ""))
    assert "user 1 asks" in refused.value.message
    assert refused.value.code == "limit-reached"
    assert refused.value.retry_after == pytest.approx(0.5)
    limit.take((0, "alice"))  # others have their own
    still["now"] += 0.5
    limit.take((1, ""))
    with pytest.raises(Refusal):
        limit.take((1, ""))
    still["now"] += 3600
    for _ in range(3):  # no more than the burst was saved up
        limit.take((1, ""))
    with pytest.raises(Refusal):
        limit.take((1, ""))


def test_no_rate_is_no_limit() -> None:
    limit = RateLimit(rate=0.0, burst=1)
    for _ in range(1000):
        limit.take((1, ""))


def test_each_user_has_its_turn() -> None:
    async def act() -> list[int]:
        queue, served = FairQueue(1), []
        gate = asyncio.Event()

        async def one(user: int) -> None:
            async with queue.turn((0, f"principal {user}")):
                await gate.wait()
                served.append(user)

        tasks = [asyncio.create_task(one(user)) for user in (0, 1, 1, 1, 1, 2, 3)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        return served

    assert asyncio.run(act()) == [0, 1, 2, 3, 1, 1, 1]


def test_slots_are_neither_lost_nor_made_by_cancellation() -> None:
    async def act() -> int:
        queue, working, most = FairQueue(3), 0, 0

        async def one(user: int) -> None:
            nonlocal working, most
            async with queue.turn((0, f"principal {user}")):
                working += 1
                most = max(most, working)
                await asyncio.sleep(0)
                working -= 1

        tasks = [asyncio.create_task(one(n % 5)) for n in range(200)]
        for n, task in enumerate(tasks):
            if n % 3 == 0:
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert queue._free == 3
        assert queue._waiting == {}
        return most

    assert asyncio.run(act()) == 3


def test_attachments_are_shared_among_principals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MOST", 100)
    monkeypatch.setattr(shares, "MOST_EACH", 40)
    have: list[Asked] = []
    policy = Policy(PolicySection(operators=[0]))
    shared = Shares(policy, lambda: have)

    def fill(asker: Asked) -> int:
        """As many attachments as the asker may have; how many those are."""
        before = len(have)
        try:
            while True:
                with shared.one_more(asker):
                    pass
                have.append(asker)
        except Refusal:
            return len(have) - before

    assert [fill((0, name)) for name in ("alice", "bob")] == [40, 30]
    assert fill((1000, "")) == 15, "users that are no principals have theirs"
    assert fill((0, "")) == 15, "an operator for itself takes what is left"
    have.remove((0, "alice"))
    with shared.one_more((0, "")), pytest.raises(Refusal, match="100 attachments"):
        # One that is being made counts.
        shared._refuse_more((0, ""))

"""Deadlines of many seals: in order, brought forward, and forgotten."""

from __future__ import annotations

import asyncio

import pytest

from sealsvc.runtime import clock
from sealsvc.runtime.deadlines import Deadlines
from sealsvc.runtime.tasks import Tasks


@pytest.fixture(autouse=True)
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_ahead", 0.0)


class Seals:
    """`rounds` are by token."""

    def __init__(self) -> None:
        self.rounds: dict[int, int] = {}
        self.reached: list[int] = []
        self.alarms: list[str] = []
        self.tasks = Tasks(self.alarms.append)
        self.deadlines = Deadlines(self.tasks, self._reached, self._awaited)

    def set(self, token: int, when: float) -> None:
        self.rounds[token] = self.rounds.get(token, 0) + 1
        self.deadlines.add(when, token, self.rounds[token])

    def _awaited(self, token: int, round: int) -> bool:
        return self.rounds.get(token) == round

    def _reached(self, token: int, round: int) -> None:
        if self._awaited(token, round):
            self.reached.append(token)

    async def have(self, count: int) -> list[int]:
        async with asyncio.timeout(60):
            while len(self.reached) < count:
                await asyncio.sleep(0.001)
        return self.reached


def test_deadlines_are_reached_in_their_order() -> None:
    async def scene() -> None:
        seals = Seals()
        for token, seconds in ((1, 3000), (2, 1000), (3, 2000), (4, -5)):
            seals.set(token, clock.now() + seconds)
        assert await seals.have(1) == [4]
        clock.advance(4000)
        assert await seals.have(4) == [4, 2, 3, 1]
        await seals.tasks.stop()
        assert seals.alarms == []

    asyncio.run(scene())


def test_the_newest_round_of_a_token_counts() -> None:
    async def scene() -> None:
        seals = Seals()
        seals.set(1, clock.now() + 5000)
        await asyncio.sleep(0)
        seals.set(1, clock.now() + 10)  # brought forward, while the other is waited for
        seals.set(2, clock.now() + 20)
        clock.advance(15)
        assert await seals.have(1) == [1]
        clock.advance(10_000)
        assert await seals.have(2) == [1, 2]
        await seals.tasks.stop()

    asyncio.run(scene())


def test_those_that_are_out_of_date_are_not_kept() -> None:
    async def scene() -> None:
        seals = Seals()
        for _ in range(20):
            for token in range(100):
                seals.set(token, clock.now() + 5000)
        assert len(seals.deadlines) <= 400
        clock.advance(6000)
        assert sorted(await seals.have(100)) == list(range(100))
        await seals.tasks.stop()

    asyncio.run(scene())

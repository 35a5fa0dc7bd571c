"""Waiting for a moment of CLOCK_BOOTTIME, through suspend and whatever the wall clock does."""

from __future__ import annotations

import asyncio
import time

import pytest

from sealsvc.runtime import clock
from tests.support.waiting import PATIENCE


@pytest.fixture(autouse=True)
def restored() -> object:
    yield
    clock._ahead = 0.0
    clock.look_for_jumps()


def test_whoever_waits_is_woken_when_time_has_jumped() -> None:
    """After a suspend the event loop's clock has stood still, this one has not."""

    async def act() -> bool:
        waiting = asyncio.create_task(clock.within(clock.now() + 3600, asyncio.Event()))
        await asyncio.sleep(0.01)
        clock.advance(1800)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        clock.advance(1801)
        return await asyncio.wait_for(waiting, PATIENCE)

    assert asyncio.run(act()) is False


def test_the_first_event_counts() -> None:
    async def act() -> bool:
        early, late = asyncio.Event(), asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, early.set)
        return await clock.within(clock.now() + 3600, late, early)

    assert asyncio.run(act())


def test_the_wall_clock_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)

    async def act() -> bool:
        return await clock.within(clock.now() + 0.01)

    assert asyncio.run(act()) is False


def test_a_wall_clock_that_is_set_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = clock.WallClock()
    assert wall.jump() == 0
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert wall.jump() == pytest.approx(3600, abs=1)
    assert wall.jump() == 0
    monkeypatch.setattr(time, "time", lambda: real() - 60)
    assert wall.jump() == pytest.approx(-3660, abs=1)

"""Looks at processes that do not come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from sealsvc.runtime.workers import Looks, Lost, Workers
from tests.support.waiting import PATIENCE


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.stop()


def test_a_look_gives_what_it_found(workers: Workers) -> None:
    looks = Looks(workers)
    assert asyncio.run(looks.run(1000, 1, Future(), lambda: "found")) == "found"
    with pytest.raises(ZeroDivisionError):
        asyncio.run(looks.run(1000, 1, Future(), lambda: 1 / 0))


def test_a_process_that_keeps_a_look_is_not_looked_at_again_until_it_is_over(
    workers: Workers,
) -> None:
    async def run() -> None:
        looks, go, ended = Looks(workers, patience=0.2), threading.Event(), list[str]()
        call: Future[bool] = Future()
        call.add_done_callback(lambda _: ended.append("first"))
        with pytest.raises(Lost, match="process 1 was not done"):
            await looks.run(1000, 1, call, go.wait)
        assert not ended, "it is still under way"
        refused: Future[str] = Future()
        refused.add_done_callback(lambda _: ended.append("second"))
        with pytest.raises(Lost, match="has not come back"):
            await looks.run(1000, 1, refused, lambda: "")
        assert ended == ["second"], "it never began, and what it was to use can be let go"
        looks._patience = PATIENCE  # for what comes back, on a slow machine as well
        assert await looks.run(1000, 2, Future(), lambda: "another process") == "another process"
        go.set()
        while "first" not in ended:
            await asyncio.sleep(0.01)

        async def again() -> bool:
            try:
                return await looks.run(1000, 1, Future(), lambda: True)
            except Lost:
                return False

        while not await again():
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_one_user_loses_so_many_and_the_others_none(workers: Workers) -> None:
    async def run() -> None:
        looks, go = Looks(workers, patience=0.1), threading.Event()
        for pid in range(8):
            with pytest.raises(Lost):
                await looks.run(1000, pid, Future(), go.wait)
        with pytest.raises(Lost, match="of user 1000"):
            await looks.run(1000, 100, Future(), lambda: "")
        looks._patience = PATIENCE
        assert await looks.run(1001, 100, Future(), lambda: "other user") == "other user"
        go.set()

    asyncio.run(run())

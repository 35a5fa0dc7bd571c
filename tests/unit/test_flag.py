"""A flag that tasks wait for."""

from __future__ import annotations

import asyncio

import pytest

from sealsvc.runtime import clock
from sealsvc.runtime.flag import Flag


def test_all_who_wait_are_woken_but_who_gave_up() -> None:
    async def run() -> None:
        flag = Flag()
        waiting = [asyncio.create_task(flag.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert not flag.is_set()
        flag.set()
        flag.set()
        await asyncio.gather(*waiting[1:])
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert flag.is_set()
        await flag.wait()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_deadline_may_pass_before_it_is_set_and_it_is_set_after() -> None:
    async def run() -> None:
        flag, other = Flag(), Flag()
        assert not await clock.within(clock.now() + 0.01, flag, other)
        asyncio.get_running_loop().call_later(0.01, flag.set)
        assert await clock.within(clock.now() + 3600, other, flag)
        assert await clock.within(0, flag)

    asyncio.run(asyncio.wait_for(run(), 60))

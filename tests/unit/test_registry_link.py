"""The registry's process as the service has it: it may end, hang, or be slow, and is followed by
another; what was sent and not written is sent again, and written once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from registry_support import PEER, Told, event, info, map_of, moved

from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.protocol.history import SealFilter
from sealsvc.registry import Registry, link
from sealsvc.registry.queries import Queries
from sealsvc.runtime.config import RegistrySection
from tests.support.waiting import PATIENCE


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


def running(
    directory: Path, told: Told, act: Callable[[Registry], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        section = RegistrySection(directory=str(directory))
        made = Registry(section, told.alarms.append, told.recoveries.append, lambda _: None)
        made._link._health._quiet = 0.2
        made.start()
        try:
            await until(lambda: made._link._process is not None)
            await act(made)
        finally:
            await made.close()
        assert made._link._process is None

    asyncio.run(run())


def process_of(registry: Registry) -> int:
    process = registry._link._process
    assert process is not None
    return process.pid


async def ids(registry: Registry) -> list[int]:
    found = await registry.ask((0, ""), Queries.history, SealFilter(), None, 10_000)
    return sorted(int(seal.id, 16) for seal in found.seals)


def test_what_is_recorded_can_be_asked_for(tmp_path: Path) -> None:
    async def act(registry: Registry) -> None:
        for n in range(50):
            registry.granted(info(n, path=f"/m/\udcff{n}"), map_of(n), PEER)
            registry.watch(moved(info(n), State.RETURNED))
        await until(lambda: registry.lag == 0)
        assert await ids(registry) == list(range(50))
        assert ((await registry.ask((0, ""), Queries.map_at_grant, info(3).id)) == map_of(3)).all()
        same = await registry.ask((0, ""), Queries.map_difference, info(3).id, map_of(3), 10)
        assert (same.total, same.changed) == (0, 0)
        trail = await registry.ask((0, ""), Queries.audit, None, 10, kind="granted")
        assert len(trail.entries) == 10
        with pytest.raises(Refusal, match="nothing is recorded"):
            await registry.ask((0, ""), Queries.seal, "e" * 24)
        assert (await registry.ask((0, ""), Queries.verify)).intact

    running(tmp_path, told := Told(), act)
    assert not told.alarms


def test_a_process_that_is_killed_is_followed_by_another(tmp_path: Path) -> None:
    async def act(registry: Registry) -> None:
        registry._link._health._quiet = PATIENCE  # one trouble, however long the restarts take
        killed = 0
        for n in range(3000):
            registry.granted(info(n), map_of(n), PEER)
            if n % 50 == 0:
                await asyncio.sleep(0.01)
            if n % 700 == 699:
                await until(lambda: registry._link._process is not None)
                os.kill(process_of(registry), signal.SIGKILL)
                killed += 1
        await until(lambda: registry.lag == 0)
        registry._link._health._quiet = 0.2
        await until(lambda: bool(told.recoveries))
        assert registry.restarts == killed == 4
        assert registry.lost == 0
        assert await ids(registry) == list(range(3000))
        granted, after = [], None
        while True:
            page = await registry.ask((0, ""), Queries.audit, after, 1000, kind="granted")
            granted += [found.seal for found in page.entries]
            if (after := page.next) is None:
                break
        assert len(granted) == len(set(granted)) == 3000, "written once each"
        assert (await registry.ask((0, ""), Queries.verify)).intact

    running(tmp_path, told := Told(), act)
    assert len(told.alarms) == 1
    assert "ended by SIGKILL" in told.alarms[0]


def test_a_process_that_hangs_is_told_of_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(registry: Registry) -> None:
        registry.granted(info(1), map_of(1), PEER)
        await until(lambda: registry.lag == 0)
        monkeypatch.setattr(link, "_SILENCE", 1.5)
        monkeypatch.setattr(link, "_GIVEN_UP", 3.0)
        monkeypatch.setattr(link, "_PATIENCE", 0.5)
        os.kill(process_of(registry), signal.SIGSTOP)
        registry.granted(info(2), map_of(2), PEER)
        with pytest.raises(Refusal) as refused:
            await registry.ask((0, ""), Queries.verify)
        assert refused.value.code == "try-later"
        await until(lambda: bool(told.alarms))
        assert "does nothing" in told.alarms[0]
        await until(lambda: registry.restarts == 1)
        monkeypatch.undo()  # the next one may be slow
        await until(lambda: registry.lag == 0)
        assert await ids(registry) == [1, 2]

    running(tmp_path, told := Told(), act)


def test_a_user_that_asks_much_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def act(registry: Registry) -> None:
        for n in range(500):
            registry.watch(event("alarm", reason=f"number {n}"))
        await until(lambda: registry.lag == 0)
        many = [asyncio.ensure_future(registry.ask(1, Queries.verify)) for _ in range(300)]
        await asyncio.sleep(0)
        await registry.ask(2, Queries.verify)
        assert sum(each.done() for each in many) < 100
        await asyncio.gather(*many)

    running(tmp_path, Told(), act)


def test_all_that_live_are_told_in_parts(tmp_path: Path) -> None:
    async def act(registry: Registry) -> None:
        for n in range(700):
            registry.granted(info(n), map_of(n), PEER)

        taken = []

        def living() -> Any:
            for n in range(500):
                taken.append(n)
                yield info(n), map_of(n)

        registry.present(living())
        assert len(taken) < 500, "not in one turn"
        registry.granted(info(1000), map_of(1000), PEER)
        await until(lambda: len(taken) == 500 and registry.lag == 0)
        found = await registry.ask((0, ""), Queries.history, SealFilter(), None, 10_000)
        live = sorted(int(seal.id, 16) for seal in found.seals if seal.ended_at is None)
        assert live == [*range(500), 1000]

    running(tmp_path, Told(), act)


def test_the_end_is_bounded(tmp_path: Path) -> None:
    async def act() -> None:
        told = Told()
        section = RegistrySection(directory=str(tmp_path))
        registry = Registry(section, told.alarms.append, told.recoveries.append, lambda _: None)
        registry.start()
        await until(lambda: registry._link._process is not None)
        process = registry._link._process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        registry.granted(info(1), map_of(1), PEER)
        assert not await registry.close(1.0)  # and not when the process goes on, which is below
        left.append(process)

    left: list[subprocess.Popen[bytes]] = []
    asyncio.run(act())
    # It reads what it was sent, and ends, when it can.
    left[0].send_signal(signal.SIGCONT)
    assert left[0].wait(PATIENCE) == 0

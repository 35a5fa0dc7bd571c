"""The Python face of libseal: contexts, event loops, and readers that are late."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import aclosing
from pathlib import Path

import pytest

from sealsvc.client.ring import AsyncRingClient, News, RingClient
from sealsvc.core.model import Preparation, State
from tests.ring.conftest import BLOCK, SIZE, truncating
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel]


def test_leaving_its_context_returns_a_seal(client: RingClient, fd: int, file: Path) -> None:
    registered = client.register(fd)
    with client.grant(registered, 0, BLOCK) as seal:
        assert seal.valid
    assert seal.state is State.RETURNED
    assert not seal.valid
    with truncating(file, 0), client.grant(registered, 0, BLOCK) as recalled:
        until(lambda: recalled.state in (State.RECALLED, State.GRANTED))
    assert recalled.state is State.RETURNED


def test_a_file_is_prepared_before_it_is_registered(client: RingClient, file: Path) -> None:
    sparse = file.with_name(f"{file.name}-sparse")
    with sparse.open("w+b") as opened:
        opened.truncate(SIZE)
        with pytest.raises(OSError, match="hole"):
            client.register(opened.fileno())
        steps = (Preparation.ALLOCATE, "convert")
        registered = client.register(opened.fileno(), prepare=steps)
        with client.grant(registered, 0, BLOCK) as seal:
            assert seal.valid
        client.unregister(registered)
    sparse.unlink()


def test_a_client_that_is_closed_cannot_be_used(running: Running, fd: int) -> None:
    client = RingClient(str(running.socket))
    client.close()
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.register(fd)


def test_who_does_not_dispatch_is_told_that_news_were_dropped(
    running: Running, fd: int, file: Path
) -> None:
    with RingClient(str(running.socket), events=2) as client:
        registered = client.register(fd)
        seals = [client.grant(registered, n * BLOCK, BLOCK) for n in range(4)]
        assert not client.missed
        with truncating(file, 0):
            until(lambda: all(seal.state is State.RECALLED for seal in seals))
            assert len(client.dispatch()) == 2
            assert client.missed
            assert not client.missed
            for seal in seals:
                seal.refresh()
                seal.give_back()


def test_a_ring_of_any_size(running: Running, fd: int, file: Path) -> None:
    """Neither the bytes of commands nor the number of events is a power of two."""
    with RingClient(str(running.socket), commands=13 * 16, events=7) as client:
        registered = client.register(fd)
        for _ in range(100):
            client.grant(registered, 0, BLOCK).give_back()
        for n in reversed(range(8)):  # of each a recall: the events go round
            seal = client.grant(registered, n * BLOCK, BLOCK)
            with truncating(file, n * BLOCK):
                until(lambda seal=seal: not seal.valid)
                until(lambda: [news.kind for news in client.dispatch()].count("recall") == 1)
                seal.refresh()
                seal.give_back()
        assert not client.missed


def test_looking_before_sleeping(running: Running, fd: int) -> None:
    with RingClient(str(running.socket), spin=1000) as client:
        registered = client.register(fd)
        for _ in range(200):
            client.grant(registered, 0, BLOCK).give_back()
        assert client.dispatch() == []


def test_in_an_event_loop(running: Running, fd: int, file: Path) -> None:
    async def hold() -> list[News]:
        with AsyncRingClient(str(running.socket)) as client:
            seal = client.grant(client.register(fd), 0, SIZE)
            truncation = await asyncio.create_subprocess_exec("truncate", "-s", "0", file)
            found = []
            async with asyncio.timeout(PATIENCE), aclosing(client.pushes()) as pushes:
                async for news in pushes:
                    found.append(news)
                    if news.kind == "recall":
                        seal.refresh()
                        seal.give_back()
                    if seal.state is State.RETURNED:
                        break
            assert await truncation.wait() == 0
            return found

    found = asyncio.run(hold())
    assert found[0].kind == "recall"
    assert found[0].length == SIZE
    assert os.fstat(fd).st_size == 0


def test_seals_are_independent_of_the_clients_threads(client: RingClient, fd: int) -> None:
    """Validity may be asked by any thread while the client is used."""
    registered = client.register(fd)
    seal = client.grant(registered, 0, BLOCK)

    async def ask() -> bool:
        answers = [asyncio.to_thread(lambda: seal.valid) for _ in range(8)]
        return all(await asyncio.gather(*answers))

    assert asyncio.run(ask())


def test_another_thread_is_refused_while_one_is_at_it(client: RingClient, fd: int) -> None:
    registered = client.register(fd)
    begun, ends, told = threading.Event(), threading.Event(), []

    def wait(*_: object) -> int:
        begun.set()
        ends.wait(PATIENCE)
        return 0

    other = threading.Thread(target=lambda: told.append(client.alone(wait)))
    other.start()
    assert begun.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="another thread"):
        client.grant(registered, 0, BLOCK)
    ends.set()
    other.join()
    assert told == [0]
    with client.grant(registered, 0, BLOCK) as seal:
        assert seal.valid

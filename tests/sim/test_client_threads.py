"""A client is one thread's, or one event loop's: another is refused, before anything is sent."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from sealsvc.client import AsyncClient, Client
from sealsvc.protocol.system import Status
from tests.api.running import service, wait_for


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("threads")
    with service(directory, "--sim"):
        yield str(directory / "control.sock")


def test_a_call_beside_another_threads_is_refused(socket: str) -> None:
    with Client(socket) as client:
        listening = threading.Thread(target=lambda: list(client.pushes()))
        listening.start()
        wait_for(client._used.locked)
        with pytest.raises(RuntimeError, match="another thread uses this client"):
            client.grant(path="/sim/file")
        client.interrupt()
        listening.join()
    with Client(socket) as client:
        assert client.status().seals == {}


def test_threads_have_a_client_each(socket: str) -> None:
    told: list[str] = []

    def ask() -> None:
        with Client(socket) as client:
            told.extend(client.status().version for _ in range(20))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 80


def test_another_event_loop_is_refused(socket: str) -> None:
    async def main() -> None:
        async with AsyncClient(socket) as client:
            refused = asyncio.to_thread(asyncio.run, client.call(Status))
            with pytest.raises(RuntimeError, match="another event loop"):
                await refused
            assert (await client.status()).seals == {}

    asyncio.run(main())

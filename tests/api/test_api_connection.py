from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealsvc.client import AsyncClient, Reply
from sealsvc.core.errors import Refusal
from sealsvc.protocol.events import Watching
from sealsvc.protocol.messages import Done
from sealsvc.protocol.system import Status
from sealsvc_api.connection import Backoff, Connection, expect
from tests.api.conftest import Api
from tests.api.fake_daemon import FakeDaemon
from tests.support.waiting import PATIENCE, until


def test_it_reconnects_after_a_restart(api: Api, daemon: FakeDaemon) -> None:
    with api.client() as http:
        assert http.get("/v1/status").status_code == 200
        daemon.close()
        until(lambda: http.get("/readyz").status_code == 503)
        answer = http.get("/v1/seals")
        assert answer.json()["code"] == "service-unavailable"
        assert answer.headers["retry-after"] == "1"
        assert http.get("/healthz").status_code == 200
        again = FakeDaemon(daemon.path)
        try:
            until(lambda: http.get("/readyz").status_code == 200)
            assert http.get("/v1/seals").status_code == 200
        finally:
            again.close()


def test_it_waits_for_a_service_that_comes_later(lonely: Api, control: Path) -> None:
    with lonely.client() as http:
        assert http.get("/readyz").status_code == 503
        late = FakeDaemon(control)
        try:
            until(lambda: http.get("/readyz").status_code == 200)
        finally:
            late.close()


def test_nothing_is_left_over(api: Api, daemon: FakeDaemon) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with api.client() as http:
        http.get("/v1/status")
        before = descriptors(), threading.active_count()
        for last in range(20):
            with http.stream("GET", "/v1/events", headers={"Last-Event-ID": str(last)}):
                pass
        with api.client() as other:
            other.get("/v1/status")
        until(lambda: (descriptors(), threading.active_count()) <= before)


@given(st.integers(0, 10_000))
def test_backoff_is_bounded(attempt: int) -> None:
    delay = Backoff(0.1, 5.0).delay(attempt)
    assert 0.05 <= delay <= 5.0
    assert delay <= 0.1 * 2 ** min(attempt, 10)


def test_a_defect_in_a_session_does_not_end_the_connection(daemon: FakeDaemon) -> None:
    sessions: list[AsyncClient] = []
    enough = asyncio.Event()

    async def session(client: AsyncClient) -> None:
        sessions.append(client)
        if len(sessions) == 3:
            enough.set()
        raise ZeroDivisionError

    async def run() -> None:
        connection = Connection(str(daemon.path), session, Backoff(0.001, 0.002))
        async with connection.kept(), asyncio.timeout(PATIENCE):
            await enough.wait()
        assert not connection.connected
        assert not any(client.connected for client in sessions)

    asyncio.run(run())


def test_a_service_that_does_not_answer_in_time(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = asyncio.Event()

    async def session(client: AsyncClient) -> None:
        up.set()
        async for _ in client.pushes():
            pass

    async def run() -> Refusal:
        connection = Connection(str(daemon.path), session, Backoff(0.001, 0.002))
        async with connection.kept(), asyncio.timeout(PATIENCE):
            await up.wait()
            with pytest.raises(Refusal) as caught:
                await connection.call(Status, 0.01)
        return caught.value

    with daemon._lock:
        refusal = asyncio.run(run())
    assert refusal.code == "service-unavailable"
    assert refusal.details == {"outcome": "unknown"}


def test_an_answer_of_another_kind_is_a_defect() -> None:
    assert expect(Reply(Done()), Done) == Done()
    with pytest.raises(Refusal, match="Done, not Watching"):
        expect(Reply(Done()), Watching)

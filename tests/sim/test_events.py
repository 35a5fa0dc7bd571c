"""Events and recalls reach who watches, however slowly it reads: what is lost is told at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import AsyncClient, Client
from sealsvc.protocol.events import Event, EventPage, PastEvents, Watch, Watching
from sealsvc.protocol.seals import Grant, Recall, RecallSeals, Renew, Return
from tests.api.running import service
from tests.support.waiting import PATIENCE

KEPT = 300


@pytest.fixture
def control(tmp_path: Path) -> Iterator[str]:
    config = tmp_path / "sealsvc.toml"
    config.write_text(f"[service]\nevent_history = {KEPT}\n[registry]\nenabled = false\n")
    with service(tmp_path, "--sim", "--config", str(config)):
        yield str(tmp_path / "control.sock")


@pytest.fixture
def client(control: str) -> Iterator[Client]:
    with Client(control, timeout=PATIENCE) as made:
        yield made


def happen(client: Client, count: int) -> None:
    """At least so many events."""
    reply = client.grant(path="/sim/file", length=1 << 20, kind="shared", ttl=1000.0)
    os.close(reply.fds[0])
    for _ in range(count):
        client.call(Renew, seal=reply.seal.id)
    client.call(Return, seal=reply.seal.id)


def watched(watcher: Client, since: int | None) -> Watching:
    answer = watcher.call(Watch, since=since).result
    assert isinstance(answer, Watching)
    return answer


def read(watcher: Client, last: int) -> list[Event]:
    events = []
    for push in watcher.pushes(PATIENCE):
        assert isinstance(push, Event)
        events.append(push)
        if push.seq >= last and push.name != "gap":
            return events
    raise AssertionError(f"{last} never came; the last was {events[-1:]}")


def test_all_that_is_kept_is_replayed(control: str, client: Client) -> None:
    happen(client, KEPT - 50)
    with Client(control, timeout=PATIENCE) as watcher:
        told = watched(watcher, 0)
        assert not told.gap
        assert [event.seq for event in read(watcher, told.seq)] == list(range(1, told.seq + 1))


def test_a_replay_of_what_is_gone_says_so(control: str, client: Client) -> None:
    happen(client, KEPT + 100)
    with Client(control, timeout=PATIENCE) as watcher:
        told = watched(watcher, 0)
        assert told.gap
        events = read(watcher, told.seq)
        assert len(events) == KEPT
        assert events[-1].seq == told.seq
        assert watched(watcher, told.seq + 1000).gap, "a number of another run"


def test_a_slow_reader_hears_at_once_what_it_lost(control: str, client: Client) -> None:
    with Client(control, timeout=PATIENCE) as watcher:
        watched(watcher, None)
        happen(client, KEPT * 8)
        time.sleep(0.2)
        page = client.call(PastEvents, since=0).result
        assert isinstance(page, EventPage)
        events = read(watcher, page.seq)
    numbers = [event.seq for event in events if event.name != "gap"]
    lost = sum(event.data["dropped"] for event in events if event.name == "gap")
    assert lost > 0
    assert numbers == sorted(set(numbers))
    assert len(numbers) + lost == numbers[-1] - numbers[0] + 1, "each is there, or told as lost"


def test_pages_of_past_events(client: Client) -> None:
    happen(client, KEPT + 20)
    since, seen = 0, []
    while True:
        page = client.call(PastEvents, since=since, limit=40).result
        assert isinstance(page, EventPage)
        assert page.gap is (since == 0)
        if not page.events:
            break
        assert len(page.events) <= 40
        seen += [event.seq for event in page.events]
        since = seen[-1]
    assert seen == list(range(page.seq - KEPT + 1, page.seq + 1))


def test_a_recall_before_the_first_iteration_is_heard(control: str, client: Client) -> None:
    async def hold() -> str:
        async with AsyncClient(control) as holder:
            reply = await holder.call(Grant, path="/sim/held", length=1 << 20)
            os.close(reply.fds[0])
            seal = reply.seal.id
            await asyncio.to_thread(client.call, RecallSeals, seal=seal)
            await asyncio.sleep(0.2)
            async with asyncio.timeout(PATIENCE):
                async for push in holder.pushes():
                    assert isinstance(push, Recall)
                    await holder.call(Return, seal=seal)
                    return push.seal
        raise AssertionError("the holder never heard of it")

    assert asyncio.run(hold())

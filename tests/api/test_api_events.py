from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from sealsvc.core.errors import Refusal
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.system import Status
from sealsvc_api.access import Caller, Role
from sealsvc_api.events import _followed, _since
from sealsvc_api.feed import Feed, Listener, Packet, gap, packet
from sealsvc_api.shares import Shares
from tests.api.conftest import TOKEN, Api
from tests.api.fake_daemon import FakeDaemon
from tests.api.sse import stream
from tests.support.waiting import until

ANYBODY = Caller("root", Role.ADMIN, None, None, 100.0, how="token")


def listeners(api: Api) -> int:
    return len(api.app.state.feed._listeners)


def test_events_arrive_as_they_happen(api: Api, daemon: FakeDaemon) -> None:
    with stream(api) as events:
        assert (events.opening.id, events.opening.retry) == ("0", "2000")
        sent = daemon.emit("state", seal="a" * 24, to="recalled")
        got = events.event()
        assert (got.id, got.event) == ("1", "state")
        assert got.data["seal"] == "a" * 24
        assert got.data["data"] == {"to": "recalled"}
        assert got.data["time"] == sent.time


def test_one_watch_serves_all(api: Api, daemon: FakeDaemon) -> None:
    with stream(api) as one, stream(api) as two:
        daemon.emit()
        assert one.ids(1) == two.ids(1) == [1]
    assert len(daemon.asked(Watch)) == 1
    until(lambda: listeners(api) == 0)


def test_replay_then_live_without_hole_or_repetition(api: Api, daemon: FakeDaemon) -> None:
    for _ in range(5):
        daemon.emit()
    with stream(api, last=2) as events:
        daemon.emit()
        assert events.ids(4) == [3, 4, 5, 6]
    with stream(api, since=4) as events:
        assert events.ids(2) == [5, 6]
    with stream(api, last=6, since=1) as events:
        daemon.emit()
        assert events.ids(1) == [7]


def test_other_listeners_do_not_see_a_replay(api: Api, daemon: FakeDaemon) -> None:
    daemon.emit()
    daemon.emit()
    with stream(api) as settled:
        assert settled.opening.id == "2"
        with stream(api, last=0) as late:
            assert late.ids(2) == [1, 2]
        daemon.emit()
        assert settled.ids(1) == [3]


def test_a_gap_is_told_when_the_service_has_forgotten(api: Api, daemon: FakeDaemon) -> None:
    for _ in range(6):
        daemon.emit()
    daemon.forget(4)
    with stream(api, last=1) as events:
        told = events.event()
        assert (told.event, told.id) == ("gap", "1")
        assert "no longer keeps" in told.data["data"]["reason"]
        assert events.ids(2) == [5, 6]
    with stream(api, last=4) as events:
        assert events.ids(2) == [5, 6], "nothing is missing here"


def test_an_id_of_an_earlier_run_is_a_gap(api: Api, daemon: FakeDaemon) -> None:
    daemon.emit()
    with stream(api, last=500) as events:
        told = events.event()
        assert (told.event, told.id) == ("gap", "0")
        assert events.ids(1) == [1]


def test_the_services_own_gap_event_passes(api: Api, daemon: FakeDaemon) -> None:
    with stream(api) as events:
        daemon.emit("gap", dropped=9)
        assert events.event().data["data"] == {"dropped": 9}


def test_a_restart_of_the_service_is_a_gap(api: Api, daemon: FakeDaemon) -> None:
    with stream(api) as events:
        daemon.emit()
        daemon.emit()
        assert events.ids(2) == [1, 2]
        daemon.close()
        again = FakeDaemon(daemon.path, happened=3, run="0badcafe")
        try:
            told = events.event()
            assert (told.event, told.id) == ("gap", "0badcafe.0")
            assert "restarted" in told.data["data"]["reason"]
            again.emit()
            assert events.ids(4) == [1, 2, 3, 4], "what happened before we were back, too"
        finally:
            again.close()


def test_an_id_of_another_run_is_recognised(lonely: Api, control: Path) -> None:
    """Though there is an event with that number in this run, too."""
    daemon = FakeDaemon(control, happened=3, run="0badcafe")
    try:
        lonely.ready()
        with stream(lonely, last="0ddba115.2") as events:
            told = events.event()
            assert (told.event, told.id) == ("gap", "0badcafe.0")
            assert events.ids(3) == [1, 2, 3]
        with stream(lonely, last="0badcafe.2") as events:
            assert events.ids(1) == [3]
    finally:
        daemon.close()


def test_a_lost_connection_to_the_same_run_loses_nothing(api: Api, daemon: FakeDaemon) -> None:
    with stream(api) as events:
        daemon.emit()
        assert events.ids(1) == [1]
        daemon.hang_up()
        daemon.emit()
        assert events.ids(1) == [2]
        assert daemon.asked(Watch)[-1].since == 1


def test_heartbeats(api: Api) -> None:
    with stream(api) as events:
        assert events.comment() == "heartbeat"


@pytest.mark.parametrize("bad", ["x", "-1", "1.5", "9" * 20])
def test_a_last_event_id_that_is_none(http: httpx.Client, bad: str) -> None:
    answer = http.get("/v1/events", headers={"Last-Event-ID": bad})
    assert answer.json()["code"] == "bad-request"


def test_too_many_listeners(api: Api) -> None:
    with stream(api), stream(api), stream(api), api.client() as http:
        answer = http.get("/v1/events")
        assert answer.json()["code"] == "limit-reached"
        assert answer.headers["retry-after"] == "5"
    until(lambda: listeners(api) == 0)


def test_a_reader_that_takes_nothing_is_dropped(api: Api, daemon: FakeDaemon) -> None:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", api.port))
    with raw, stream(api) as brisk:
        bearer = f"Authorization: Bearer {TOKEN}".encode()
        raw.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n" + bearer + b"\r\n\r\n")
        until(lambda: listeners(api) == 2)
        # Enough to fill the kernel's buffers (several MiB on loopback), uvicorn's and the queue.
        for number in range(1, 400, 10):
            for _ in range(10):
                daemon.emit(padding="x" * 30_000)
            expected = list(range(number, number + 10))
            assert brisk.ids(10) == expected, "the brisk reader must not suffer"
        until(lambda: listeners(api) == 1)
        until(lambda: len(api.server.server_state.tasks) == 1)


def told(seq: int, path: str | None = None) -> Packet:
    return packet(Event(seq=seq, time=0.0, name="alarm", path=path), "")


def test_what_is_in_the_past_and_live_comes_once() -> None:
    async def run() -> list[int]:
        feed = Feed("/nowhere", 8, 1 << 20, Shares("listeners", 8, 8))
        listener = Listener(ANYBODY, 8, 1 << 20)
        for seq in (3, 4):
            listener.offer(told(seq))

        async def past() -> AsyncIterator[list[Packet]]:
            yield [told(2), told(3)]

        batches = _followed(feed, listener, 1, past(), 60.0)
        found = [*await anext(batches), *await anext(batches)]
        await batches.aclose()
        return [item.event.seq for item in found]

    assert asyncio.run(run()) == [2, 3, 4]


def test_a_slow_listener_ends_and_keeps_its_order() -> None:
    listener = Listener(ANYBODY, 2, 1 << 20)
    offered = [listener.offer(packet(gap(n, ""), "")) for n in range(4)]
    assert offered == [True, True, False, False]
    assert listener.dropped


def test_a_listener_is_bounded_in_bytes() -> None:
    listener = Listener(ANYBODY, 1000, 300)
    assert listener.offer(told(1))
    assert not all(listener.offer(told(n)) for n in range(2, 20))


def test_a_confined_listener_hears_of_its_files_alone() -> None:
    confined = Caller("eve", Role.VIEWER, ("/srv/a",), (), 100.0, how="token")
    listener = Listener(confined, 8, 1 << 20)
    for seq, path in enumerate(["/srv/a/x", "/srv/ab", None, "/srv/a", "/srv/a/../b"], 1):
        assert listener.offer(told(seq, path))

    async def first() -> list[int]:
        return [item.event.seq for item in await anext(listener.batches())]

    assert asyncio.run(first()) == [1, 4]


def test_an_id_names_the_run() -> None:
    assert _since("5f3a91c2.17", None) == (17, "5f3a91c2")
    assert _since(None, "17") == (17, None)
    assert _since("", None) == (None, None)
    assert packet(Event(seq=3, time=0.0, name="alarm"), "ab").mark == "ab.3"


@pytest.mark.parametrize("denied", [Watch, Status])
def test_events_denied_leave_the_rest(api: Api, daemon: FakeDaemon, denied: type) -> None:
    daemon.denied = {denied}
    feed: Feed = api.app.state.feed
    daemon.hang_up()
    until(lambda: feed._refused is not None)
    with api.client() as http:
        until(lambda: http.get("/v1/filesystems").status_code == 200)
        assert http.get("/v1/events").json()["code"] == "denied"
    with pytest.raises(Refusal, match="policy"):
        feed.listen(ANYBODY)

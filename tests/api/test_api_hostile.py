"""Clients that let the server wait, ask for everything, or have lost their rights."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from sealsvc.core.errors import Refusal
from sealsvc_api import http_protocol
from sealsvc_api.access import Caller, Role
from sealsvc_api.app import build_app
from sealsvc_api.settings import Settings
from sealsvc_api.shares import Shares
from tests.api.conftest import PATIENCE, TOKEN, Api, write_principals
from tests.api.fake_daemon import FakeDaemon
from tests.api.sse import stream
from tests.api.test_api_serve import serving
from tests.support.waiting import until

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def opened(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def closed_within(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


PONG = b"\x8a\x80\0\0\0\0"  # unasked for, which does nothing


def is_reset(sock: socket.socket, seconds: float, harmless: bytes) -> bool:
    """Whether the other end resets the connection, none of which is read here. What has no room in
    our buffer is lost, and a reset behind it is as well: the other end is asked for it again."""
    deadline = time.monotonic() + seconds
    watched = select.poll()
    watched.register(sock, select.POLLHUP)
    while time.monotonic() < deadline:
        if watched.poll(100):
            return True
        try:
            sock.send(harmless)
        except ConnectionError:
            return True
    return False


def cut_off(sock: socket.socket, parts: list[bytes]) -> bool:
    """Whether the connection is closed before all parts are sent, one each 10 ms."""
    try:
        for part in parts:
            sock.sendall(part)
            time.sleep(0.01)
    except OSError:
        return True
    return False


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    import h11

    monkeypatch.setattr(http_protocol, "SEND_TIMEOUT", 0.3)
    monkeypatch.setattr(http_protocol, "_TIMEOUTS", {h11.IDLE: 0.3, h11.SEND_BODY: 0.3})


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /hea",
        b"POST /v1/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        GET + b"GET /hea",
    ],
    ids=["silent", "half a head", "half a body", "half a second head"],
)
@pytest.mark.usefixtures("hurried")
def test_who_lets_the_server_wait_is_closed(api: Api, said: bytes) -> None:
    with opened(api.port) as sock:
        sock.sendall(said)
        assert closed_within(sock, PATIENCE)


@pytest.mark.usefixtures("hurried")
def test_a_trickle_of_bytes_buys_no_time(api: Api) -> None:
    with opened(api.port) as sock:
        assert cut_off(sock, [bytes([byte]) for byte in GET[:-1] * 10])


@pytest.mark.usefixtures("hurried")
def test_who_reads_no_answer_is_closed(api: Api) -> None:
    with opened(api.port) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.5)
        request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert cut_off(sock, [request] * 400)


@pytest.mark.parametrize("value", [b"a\x0bb", b"a\x0cb", b"a\0b"])
def test_what_is_no_http_is_refused_as_everything_else(api: Api, value: bytes) -> None:
    with opened(api.port) as sock:
        sock.sendall(GET[:-2] + b"Traceparent: " + value + b"\r\n\r\n")
        answer = b""
        while part := sock.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["code"] == "bad-request"


def test_a_served_request_is_not_hurried(
    api: Api, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own time is no client's fault: an answer may take longer than any time-out."""
    import h11

    monkeypatch.setattr(http_protocol, "_TIMEOUTS", {h11.IDLE: 2.0, h11.SEND_BODY: 2.0})
    with api.client() as http, daemon.slow(3.0):
        assert http.get("/v1/status").status_code == 200


def test_silent_sockets_shut_nobody_out(daemon: FakeDaemon, principals: Path) -> None:
    arguments = ("--socket", str(daemon.path), "--principals", str(principals))
    with serving(*arguments, "--max-connections", "64") as program, ExitStack() as stack:
        port = int(program.base.rpartition(":")[2])
        for _ in range(64):
            stack.enter_context(opened(port))
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        for _ in range(5):
            with httpx.Client(base_url=program.base, headers=bearer, timeout=PATIENCE) as http:
                until(lambda: http.get("/readyz").status_code == 200)
                assert http.get("/v1/status").status_code == 200
            stack.enter_context(opened(port))


def test_probes_have_a_listener_of_their_own(daemon: FakeDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ("--socket", str(daemon.path), "--probes", f"127.0.0.1:{port}")
    base = f"http://127.0.0.1:{port}"
    with serving(*arguments), httpx.Client(base_url=base, timeout=PATIENCE) as http:
        until(lambda: http.get("/readyz").status_code == 200)
        assert http.get("/healthz").status_code == 200
        for other in ("/v1/status", "/metrics", "/dashboard/", "/v1/openapi.json"):
            assert http.get(other).status_code == 404, other


def caller(name: str, role: Role = Role.VIEWER) -> Caller:
    return Caller(name, role, None, None, 100.0, how="token")


def test_a_share_for_each_and_a_reserve_for_operators() -> None:
    shares = Shares("listeners", 16, 8)
    greedy, other, operator = caller("a"), caller("b"), caller("c", Role.OPERATOR)
    for _ in range(8):
        shares.take(greedy)
    with pytest.raises(Refusal, match="its share"):
        shares.take(greedy)
    for _ in range(6):
        shares.take(other)
    with pytest.raises(Refusal, match="as many as may be"):
        shares.take(other)
    shares.take(operator)
    assert len(shares) == 15
    shares.give_back(greedy)
    shares.give_back(greedy)
    shares.take(other)
    assert len(shares) == 14


@pytest.mark.parametrize(("connections", "listeners"), [(512, 256), (64, 256), (512, 16)])
def test_many_viewers_together_leave_connections_for_operators(
    connections: int, listeners: int
) -> None:
    """Listeners and requests that wait are turned out for nobody."""
    app = build_app(Settings(max_connections=connections, max_listeners=listeners))
    taken = 0
    for shares in (app.state.feed._shares, app.state.in_flight):
        with suppress(Refusal):
            for number in range(10 * connections):
                shares.take(caller(f"viewer {number % 100}"))
                taken += 1
    assert connections // 2 < taken <= connections - connections // 16


@pytest.fixture
def settings(settings: Settings) -> Settings:
    from dataclasses import replace

    return replace(
        settings, listeners_each=2, recheck=0.05, events_queue=8192, send_timeout=PATIENCE
    )


def test_one_listener_takes_no_more_than_its_share(api: Api) -> None:
    with stream(api), stream(api), api.client() as http:
        refused = http.get("/v1/events")
        assert (refused.status_code, refused.json()["code"]) == (429, "limit-reached")
        with api.client("another") as other, other.stream("GET", "/v1/events") as answer:
            assert answer.status_code == 200
    until(lambda: len(api.app.state.feed._shares) == 0)


def test_requests_in_flight_are_given_back(api: Api) -> None:
    with api.client() as http:
        assert http.get("/v1/status").status_code == 200
        assert http.get("/v1/seals/none").status_code == 400
        assert http.post("/v1/recalls", json={}).status_code == 400
    until(lambda: len(api.app.state.in_flight) == 0)


@contextmanager
def followed(api: Api) -> Iterator[Iterator[str]]:
    with api.client() as http, http.stream("GET", "/v1/events") as answer:
        assert answer.status_code == 200
        yield answer.iter_lines()


def changed(principals: Path, **entry: object) -> None:
    root = {"role": "admin", "scopes": ["/"], "token": TOKEN, **entry}
    write_principals(principals, root=root)


@pytest.mark.parametrize("entry", [{"token": "new"}, {"role": "viewer"}, {"scopes": ["/srv"]}])
def test_a_stream_ends_with_the_rights_it_was_begun_with(
    api: Api, principals: Path, entry: dict[str, object]
) -> None:
    with followed(api) as lines:
        changed(principals, **entry)
        # That it takes less than a second is measured by `python -m tests.bench.walls`.
        assert any("ended" in line for line in lines)
    until(lambda: len(api.app.state.feed) == 0)


def test_a_stream_goes_on_when_others_change(api: Api, principals: Path) -> None:
    with stream(api) as events:
        text = principals.read_text()
        principals.write_text(text.replace("principal.other", "principal.somebody"))
        time.sleep(0.8)
        api.app.state.principals.known.by_token(TOKEN)
        assert len(api.app.state.feed) == 1
        assert events.opening.id


def test_a_websocket_ends_with_its_token(api: Api, principals: Path) -> None:
    where = api.base.replace("http", "ws") + "/v1/events/ws"
    with connect(where, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket_:
        changed(principals, token="new")
        with pytest.raises(ConnectionClosed):
            socket_.recv(timeout=PATIENCE)


UPGRADE = """Connection: Upgrade
Upgrade: websocket
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
"""


@pytest.mark.parametrize(
    ("path", "headers", "harmless"),
    [("/v1/events", "", b"\r\n"), ("/v1/events/ws", UPGRADE, PONG)],
    ids=["sse", "websocket"],
)
def test_a_stream_that_is_not_read_is_cut_off(
    api: Api, daemon: FakeDaemon, principals: Path, path: str, headers: str, harmless: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What its connection still had in store for whoever is revoked goes with it."""
    monkeypatch.setattr(http_protocol, "SEND_TIMEOUT", 10 * PATIENCE)  # which would cut it as well
    daemon.page = 8
    for _ in range(2048):
        daemon.emit(text="x" * 6000)
    request = f"GET {path}?since=0 HTTP/1.1\nHost: localhost\nAuthorization: Bearer {TOKEN}\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", api.port))
        sock.sendall((request + headers + "\n").replace("\n", "\r\n").encode())
        assert sock.recv(12).startswith(b"HTTP/1.1 ")
        assert not is_reset(sock, 0.3, harmless)
        changed(principals, token="new")
        assert is_reset(sock, PATIENCE, harmless), "it is open still"
    until(lambda: len(api.app.state.feed) == 0)


def test_who_is_revoked_gets_no_answer_that_it_waits_for(
    api: Api, daemon: FakeDaemon, principals: Path
) -> None:
    with daemon.slow(3.0), ThreadPoolExecutor(1) as pool, api.client() as http:
        waiting = pool.submit(http.get, "/v1/status")
        time.sleep(1.0)
        changed(principals, token="new")
        answer = waiting.result()
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert "seals" not in answer.json()
    assert answer.headers["x-request-id"]


def test_a_connection_outlives_its_stream(api: Api, principals: Path) -> None:
    """Only a stream that goes on is cut off, and no request that came after it."""
    with api.client() as http:
        with http.stream("GET", "/v1/events") as answer:
            changed(principals, role="viewer")
            assert any("ended" in line for line in answer.iter_lines())
        for _ in range(10):
            assert http.get("/v1/status").status_code == 200
            time.sleep(0.02)


def test_a_stream_ends_when_its_session_does(api: Api) -> None:
    with httpx.Client(base_url=api.base, timeout=PATIENCE) as http:
        session = http.post("/v1/session", json={"token": TOKEN})
        csrf = session.json()["csrf"]
        with http.stream("GET", "/v1/events") as answer:
            lines = answer.iter_lines()
            next(lines)
            cookies = dict(http.cookies)
            with httpx.Client(base_url=api.base, cookies=cookies, timeout=PATIENCE) as other:
                gone = other.delete("/v1/session", headers={"X-CSRF-Token": csrf})
                assert gone.status_code == 200
            assert any("ended" in line for line in lines)


def test_all_that_is_kept_is_replayed(api: Api, daemon: FakeDaemon) -> None:
    daemon.page = 200
    for _ in range(4096):
        daemon.emit(text="x" * 100)
    daemon.delay = 0.5  # for each page
    with stream(api, last=0) as events:
        assert events.ids(1) == [1]
        # The first page does not wait for the others; python -m tests.bench.walls has the time.
        assert daemon.pages < 10
        daemon.delay = 0.0
        assert events.ids(4095) == list(range(2, 4097))
    assert daemon.pages >= 20

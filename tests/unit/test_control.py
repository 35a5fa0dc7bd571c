"""The control socket: what is read from it, in which turn, and what its users may leave unread."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sealsvc.control import connection
from sealsvc.control.connection import Connection, Reply
from sealsvc.control.framing import id_of, parse
from sealsvc.control.server import ControlServer
from sealsvc.core.errors import Refusal
from sealsvc.protocol.base import MAX_FDS, MAX_MESSAGE
from sealsvc.protocol.messages import Done
from sealsvc.protocol.seals import Show
from sealsvc.runtime.config import LimitsSection
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import Users
from tests.support.waiting import PATIENCE

SEAL = "0" * 24


def encoded(**fields: Any) -> bytes:
    return msgspec.json.encode({"op": "show", "seal": SEAL, "id": 1} | fields)


@pytest.mark.parametrize(
    ("data", "flags", "descriptors", "code"),
    [
        (encoded(), 0, 0, ""),
        (encoded(), 0, MAX_FDS, ""),
        (encoded(), 0, MAX_FDS + 1, "too-large"),
        (encoded(), socket.MSG_TRUNC, 0, "too-large"),
        (encoded(), socket.MSG_CTRUNC, 1, "limit-reached"),
        (encoded(v=2), 0, 0, "unsupported-version"),
        (encoded(v="1"), 0, 0, "unsupported-version"),
        (encoded(op="grow"), 0, 0, "unknown-operation"),
        (encoded(surprise=1), 0, 0, "bad-request"),
        (encoded(seal="no id"), 0, 0, "bad-request"),
        (encoded(id=-1), 0, 0, "bad-request"),
        (b"[1, 2", 0, 0, "bad-request"),
        (b"\xff", 0, 0, "bad-request"),
        (b"[" * 10_000, 0, 0, "bad-request"),
    ],
)
def test_what_a_datagram_is_taken_for(data: bytes, flags: int, descriptors: int, code: str) -> None:
    if not code:
        assert parse(data, flags, descriptors) == Show(id=1, seal=SEAL)
        return
    with pytest.raises(Refusal) as refused:
        parse(data, flags, descriptors)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("data", "id"),
    [
        (encoded(op="grow"), 1),
        (encoded(id=True), None),
        (encoded(id=2**53 + 1), None),
        (b"{", None),
    ],
)
def test_a_failure_names_the_request_where_it_can(data: bytes, id: int | None) -> None:
    assert id_of(data) == id


class Peer:
    """A client at the other end, in the same event loop."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.setblocking(False)

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self) -> dict[str, Any]:
        """The next message; empty at the end of the connection."""
        async with asyncio.timeout(PATIENCE):
            data = await asyncio.get_running_loop().sock_recv(self.sock, MAX_MESSAGE)
        found: dict[str, Any] = msgspec.json.decode(data) if data else {}
        return found


@asynccontextmanager
async def served(
    tmp_path: Path, handler: Callable[..., Any], *, operator: bool = True
) -> AsyncIterator[tuple[ControlServer, Peer]]:
    """A server with this handler, and a peer that is connected."""
    alarms: list[str] = []
    users = Users(LimitsSection(), lambda _: operator, alarms.append)
    tasks = Tasks(alarms.append)
    events = EventLog(100, lambda _: None)
    path = tmp_path / "control.sock"
    server = ControlServer(str(path), 0o600, handler, events, tasks, lambda _: operator, users)
    server.start()
    peer = Peer(path)
    try:
        yield server, peer
    finally:
        peer.sock.close()
        server.stop()
        await tasks.stop()
        assert not alarms


async def done(_: Connection, request: Any, received: Any) -> Reply:
    return Reply(Done())


def test_the_socket_has_its_mode_and_one_server(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(tmp_path, done) as (server, peer):
            assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600
            with pytest.raises(Refusal, match="another service answers"):
                server._refuse_if_served()
            await peer.say(encoded())
            assert (await peer.hear())["result"] == {"type": "done"}

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refusal("no-such-seal", "there is none"), "no-such-seal"),
        (PermissionError(13, "Permission denied"), "io-error"),
        (RuntimeError("a bug"), "internal"),
    ],
)
def test_whatever_a_handler_raises_is_answered(tmp_path: Path, error: Exception, code: str) -> None:
    async def fails(*_: Any) -> Reply:
        raise error

    async def scene() -> None:
        async with served(tmp_path, fails) as (_, peer):
            await peer.say(encoded(id=7))
            answer = await peer.hear()
            assert (answer["reply"], answer["id"], answer["code"]) == ("failure", 7, code)

    asyncio.run(scene())


def test_requests_are_answered_in_any_order_and_can_be_cancelled(tmp_path: Path) -> None:
    async def scene() -> None:
        held = asyncio.Event()

        async def waits(_: Connection, request: Any, received: Any) -> Reply:
            if request.id == 1:
                await held.wait()
            return Reply(Done())

        async with served(tmp_path, waits) as (_, peer):
            await peer.say(encoded(id=1))
            await peer.say(encoded(id=2))
            assert (await peer.hear())["id"] == 2
            await peer.say(encoded(id=1))
            assert "in flight already" in (await peer.hear())["message"]
            await peer.say(msgspec.json.encode({"op": "cancel", "id": 3, "request": 1}))
            said = [await peer.hear(), await peer.hear()]
            assert {(m["reply"], m.get("code")) for m in said} == {
                ("answer", None), ("failure", "cancelled")
            }  # fmt: skip

    asyncio.run(scene())


def test_a_connection_has_so_many_requests_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_IN_FLIGHT", 2)

    async def waits(*_: Any) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    async def scene() -> None:
        async with served(tmp_path, waits, operator=False) as (_, peer):
            for number in range(3):
                await peer.say(encoded(id=number))
            answer = await peer.hear()
            assert (answer["id"], answer["code"]) == (2, "limit-reached")

    asyncio.run(scene())


def test_a_client_that_does_not_read_is_not_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has asked is answered when it reads again."""
    monkeypatch.setattr(connection, "MAX_UNREAD", 2)
    answered = 0

    async def counted(*_: Any) -> Reply:
        nonlocal answered
        answered += 1
        return Reply(Done())

    async def scene() -> None:
        async with served(tmp_path, counted) as (server, peer):
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sent = 0
            with suppress(TimeoutError, BlockingIOError):
                async with asyncio.timeout(0.5):
                    while sent < 5000:
                        await peer.say(encoded(id=sent))
                        sent += 1
            assert answered < sent, "its requests wait in the socket"
            [there] = server.connections
            assert len(there._out) <= 2 + connection.MAX_IN_FLIGHT_OF_OPERATORS
            for number in range(sent):
                assert (await peer.hear())["id"] == number

    asyncio.run(scene())


def test_the_end_of_a_connection_cancels_what_it_asked(tmp_path: Path) -> None:
    async def scene() -> None:
        ended = asyncio.Event()

        async def waits(*_: Any) -> Reply:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        async with served(tmp_path, waits) as (server, peer):
            await peer.say(encoded())
            while not server.connections:
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            peer.sock.close()
            async with asyncio.timeout(PATIENCE):
                await ended.wait()
            assert not server.connections

    asyncio.run(scene())


def test_descriptors_that_nobody_takes_are_closed(tmp_path: Path) -> None:
    async def scene() -> None:
        async with served(tmp_path, done) as (_, peer):
            ours, theirs = socket.socketpair()
            with ours:
                socket.send_fds(peer.sock, [encoded()], [theirs.fileno()])
                theirs.close()
                assert (await peer.hear())["reply"] == "answer"
                ours.setblocking(False)
                async with asyncio.timeout(PATIENCE):
                    assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""

    asyncio.run(scene())


def test_only_operators_watch(tmp_path: Path) -> None:
    watch = msgspec.json.encode({"op": "watch", "id": 1})

    async def scene() -> None:
        async with served(tmp_path, done, operator=False) as (_, peer):
            await peer.say(watch)
            assert (await peer.hear())["code"] == "denied"
        async with served(tmp_path, done) as (server, peer):
            await peer.say(watch)
            assert (await peer.hear())["result"]["type"] == "watching"
            server.events.publish("alarm", reason=f"of process {os.getpid()}")
            assert (await peer.hear())["name"] == "alarm"

    asyncio.run(scene())

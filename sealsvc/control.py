"""The control socket: SOCK_SEQPACKET, one JSON message a datagram, descriptors beside it.

A connection can hurt nobody else: what it sends is bounded and typed before anything looks at it,
what it does not read is dropped (events) or ends it, and each request runs in a task of its own.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sealsvc import activation, faults, processes
from sealsvc.errors import Refusal
from sealsvc.events import EventLog
from sealsvc.messages import (
    MAX_FDS,
    MAX_MESSAGE,
    VERSION,
    Answer,
    AnyRequest,
    Cancel,
    Done,
    Event,
    Failure,
    Push,
    Result,
    Watch,
    Watching,
    decode_request,
    encode,
)
from sealsvc.processes import Peer, Process
from sealsvc.tasks import Tasks

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # requests of one connection
MAX_QUEUED = 2048  # messages one connection has not read

# One for all connections: the event loop reads one message at a time, and keeps a copy of its size.
_ROOM = memoryview(bytearray(MAX_MESSAGE))


@dataclass(slots=True)
class Reply:
    """A result, and descriptors to send with it, which are closed afterwards."""

    result: Result
    fds: list[int] = field(default_factory=list)


# Takes over the descriptors it is given.
Handler = Callable[["Connection", AnyRequest, list[int]], Awaitable[Reply]]


class Connection:
    def __init__(self, sock: socket.socket, server: ControlServer) -> None:
        self.sock, self.server = sock, server
        self.peer: Peer = processes.peer_of(sock)
        self.process: Process = processes.of_socket(sock)
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._out: deque[tuple[bytes, list[int]]] = deque()
        self._dropped = 0
        self._watching = False
        self.open = True

    # Reading

    def readable(self) -> None:
        for _ in range(32):  # then others have their turn
            try:
                size, ancillary, flags, _ = self.sock.recvmsg_into(
                    [_ROOM], socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            fds = _descriptors(ancillary)
            data = bytes(_ROOM[:size])
            if not data:
                _close_all(fds)
                self.close()
                return
            self._received(data, fds, flags)

    def _received(self, data: bytes, fds: list[int], flags: int) -> None:
        try:
            request = _parse(data, flags)
            if len(self._requests) >= MAX_IN_FLIGHT:
                raise Refusal(
                    "limit-reached", f"{MAX_IN_FLIGHT} requests are in flight on this connection"
                )
            if request.id in self._requests:
                raise Refusal("bad-request", f"request id {request.id} is in flight already")
        except Refusal as refusal:
            _close_all(fds)
            self.send(_failure(_id_of(data), refusal))
            return
        task = self.server.tasks.spawn(
            f"request {type(request).__name__} of {self.peer.pid}", self._serve(request, fds)
        )
        self._requests[request.id] = task

    async def _serve(self, request: AnyRequest, fds: list[int]) -> None:
        try:
            reply = await self._answer(request, fds)
            self.send(Answer(id=request.id, result=reply.result), reply.fds)
            faults.point(f"{type(request).__name__.lower()}:answered")
        except Refusal as refusal:
            self.send(_failure(request.id, refusal))
        except asyncio.CancelledError:
            self.send(_failure(request.id, Refusal("cancelled", "the request was cancelled")))
        except OSError as error:  # of a call that has no words of its own
            log.warning("request %s of pid %d: %s", type(request).__name__, self.peer.pid, error)
            told = Refusal("io-error", str(error), {"errno": error.errno})
            self.send(_failure(request.id, told))
        except Exception as error:  # the supervisor of requests: a defect of ours, told as one
            log.exception("request %s of pid %d", type(request).__name__, self.peer.pid)
            self.send(_failure(request.id, Refusal("internal", repr(error))))
        finally:
            self._requests.pop(request.id, None)

    async def _answer(self, request: AnyRequest, fds: list[int]) -> Reply:
        if isinstance(request, Watch):
            _close_all(fds)
            return Reply(self._watch(request))
        if isinstance(request, Cancel):
            _close_all(fds)
            if task := self._requests.get(request.request):
                task.cancel()
            return Reply(Done())
        return await self.server.handler(self, request, fds)

    # Events

    def _watch(self, request: Watch) -> Watching:
        if not self.server.may_watch(self.peer):
            raise Refusal("denied", f"uid {self.peer.uid} may not watch events")
        gap = False
        if request.since is not None:
            kept, gap = self.server.events.since(request.since)
            for event in kept:
                self._event(event)
        if not self._watching:
            self._watching = True
            self.server.events.watch(self._event)
        events = self.server.events
        return Watching(seq=events.seq, gap=gap, run=events.run)

    def _event(self, event: Event) -> None:
        """Events are dropped for a slow reader, and it is told how many."""
        if len(self._out) >= MAX_QUEUED // 2:
            self._dropped += 1
            return
        if self._dropped:
            gap = Event(seq=event.seq, time=event.time, name="gap", data={"dropped": self._dropped})
            self._dropped = 0
            self.send(gap)
        self.send(event)

    # Writing

    def send(self, message: Answer | Failure | Push, fds: list[int] | None = None) -> bool:
        """False when the connection is gone. Takes the descriptors over."""
        data, fds = encode(message), fds or []
        if len(data) > MAX_MESSAGE:
            _close_all(fds)
            fds = []
            large = Refusal("too-large", "the answer is larger than a message may be; ask for less")
            data = encode(_failure(getattr(message, "id", None), large))
        if not self.open:
            _close_all(fds)
            return False
        if len(self._out) >= MAX_QUEUED:
            log.warning("pid %d does not read its messages: closing", self.peer.pid)
            _close_all(fds)
            self.close()
            return False
        self._out.append((data, fds))
        if len(self._out) == 1:
            self.writable()
        return self.open

    def writable(self) -> None:
        loop = asyncio.get_running_loop()
        while self._out:
            data, fds = self._out[0]
            try:
                rights = array.array("i", fds)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
                self.sock.sendmsg([data], ancillary)
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self.sock, self.writable)
                return
            except OSError:
                self.close()
                return
            _close_all(fds)
            self._out.popleft()
        loop.remove_writer(self.sock)

    def close(self) -> None:
        """Requests that are under way are cancelled, and undo themselves."""
        if not self.open:
            return
        self.open = False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock)
        loop.remove_writer(self.sock)
        self.server.events.unwatch(self._event)
        self.server.connections.discard(self)
        for task in tuple(self._requests.values()):
            task.cancel()
        for _, fds in self._out:
            _close_all(fds)
        self._out.clear()
        self.process.close()
        self.sock.close()


class ControlServer:
    def __init__(
        self,
        path: str,
        mode: int,
        handler: Handler,
        events: EventLog,
        tasks: Tasks,
        may_watch: Callable[[Peer], bool],
    ) -> None:
        self.path, self.mode, self.handler = Path(path), mode, handler
        self.events, self.tasks, self.may_watch = events, tasks, may_watch
        self.connections: set[Connection] = set()
        self._sock: socket.socket | None = None
        self._passed = False

    def start(self) -> None:
        """Listen, on the socket that was passed or on one of our own."""
        sock = activation.control_socket(self.path)
        self._passed = sock is not None
        self._sock = sock or self._bind()
        asyncio.get_running_loop().add_reader(self._sock, self._acceptable)

    def _bind(self) -> socket.socket:
        """A stale socket of a dead service is replaced, a live one is an error."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_if_served()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        with suppress(FileNotFoundError):
            self.path.unlink()
        sock.bind(str(self.path))
        self.path.chmod(self.mode)
        sock.listen(1024)
        return sock

    def _refuse_if_served(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, suppress(OSError):
            probe.connect(str(self.path))
            raise Refusal("io-error", f"another service answers on {self.path}")

    def _acceptable(self) -> None:
        assert self._sock is not None
        for _ in range(64):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.error("accept on %s: %s", self.path, error)
                return
            sock.setblocking(False)
            try:
                connection = Connection(sock, self)
            except (Refusal, OSError) as error:  # the peer is gone already
                log.info("a client left before it was known: %s", error)
                sock.close()
                continue
            self.connections.add(connection)
            asyncio.get_running_loop().add_reader(sock, connection.readable)

    def stop(self) -> None:
        for connection in tuple(self.connections):
            connection.close()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None
            if self._passed:
                return  # whoever passed it goes on listening
            with suppress(FileNotFoundError):
                self.path.unlink()


def _descriptors(ancillary: list[Any]) -> list[int]:
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


class _Envelope(msgspec.Struct):
    id: Any = None
    v: Any = VERSION
    op: Any = None


def _id_of(data: bytes) -> int | None:
    try:
        found = msgspec.json.decode(data, type=_Envelope).id
    except msgspec.DecodeError:
        return None
    return found if type(found) is int and 0 <= found <= 2**53 else None


def _parse(data: bytes, flags: int) -> AnyRequest:
    if flags & socket.MSG_TRUNC:
        raise Refusal("too-large", f"a message may have {MAX_MESSAGE} bytes")
    if flags & socket.MSG_CTRUNC:
        raise Refusal("too-large", f"a message may carry {MAX_FDS} descriptors")
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        if envelope.v != VERSION:
            raise Refusal(
                "unsupported-version",
                f"version {envelope.v!r} is not spoken here; version {VERSION} is",
                {"versions": [VERSION]},
            )
        request: AnyRequest = decode_request(data)
        return request
    except msgspec.ValidationError as error:
        if "Invalid value" in str(error) and "$.op" in str(error):
            raise Refusal("unknown-operation", str(error)) from None
        raise Refusal("bad-request", str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal("bad-request", f"not a JSON object: {error}") from None


def _failure(request: int | None, refusal: Refusal) -> Failure:
    return Failure(
        id=request,
        code=refusal.code,
        message=refusal.message,
        details=refusal.details,
        retry_after=refusal.retry_after,
    )

"""HTTP/1.1 connections: how many there may be, and how long a client may let the server wait.

uvicorn has no limit on the time a client takes to send a request or to read an answer, so a few
hundred silent sockets would shut everybody else out. Here a connection that lets the server wait
is closed after a while, and sooner when others need its place.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import encode
from sealsvc_api.peers import STATE, peer_of
from sealsvc_api.problems import MEDIA_TYPE, problem

HEAD_TIMEOUT = 10.0  # seconds for a request's line and header fields, and for a TLS handshake
BODY_TIMEOUT = 20.0  # seconds for the whole body: it has 48 KiB at most
SEND_TIMEOUT = 20.0  # seconds a client may leave an answer unread

RESET = "reset"  # in a request's state: ends its connection at once, with all that is unread

# What the server waits for, by the state of the client's side of the connection.
_TIMEOUTS = {h11.IDLE: HEAD_TIMEOUT, h11.SEND_BODY: BODY_TIMEOUT}


class Protocol(H11Protocol):
    """At most `most` connections at a time on all sockets of a server. One more takes the place of
    the connection that has let the server wait longest; where none does, it is closed itself."""

    most = 512

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._awaited: Any = None  # the h11 state in which the client owes us something
        self._since = 0.0
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio sets it for sockets that were made with a protocol number, which listeners of
            # socket.create_server and of systemd were not: each answer would wait 40 ms for an ACK.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {**self.app_state, STATE: peer_of(transport), RESET: self._reset}
        self._watch()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._release()
        self._is_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self._release()  # the next request has a time of its own
        super().on_response_complete()
        self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._release()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        """Of what is no HTTP: a problem like every other refusal, then the connection ends."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            told = encode(problem(Refusal("bad-request", msg), ""))
            headers = [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", str(len(told)).encode()),
                (b"connection", b"close"),
            ]
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (response, h11.Data(data=told), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(SEND_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def _reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            # Without this the kernel would go on offering what it has in store.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _is_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _watch(self) -> None:
        """Start the time of what the server waits for now, if that is something new."""
        awaited = self.conn.their_state
        if awaited not in _TIMEOUTS or self.transport.is_closing():
            self._release()
        elif awaited is not self._awaited:
            self._release()
            self._awaited, self._since = awaited, self.loop.time()
            self._deadline = self.loop.call_later(_TIMEOUTS[awaited], self.transport.abort)

    def _release(self) -> None:
        self._awaited = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _make_room(self) -> None:
        waiting = [
            other
            for other in self.connections
            if isinstance(other, Protocol) and other._awaited is not None
        ]
        oldest = min(waiting, key=lambda other: other._since, default=self)
        # Its place is free at once; the event loop closes it later.
        self.connections.discard(oldest)
        oldest.transport.abort()

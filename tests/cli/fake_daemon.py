"""The service's end of the control socket, played by the test itself: it accepts a connection of a
real sealctl process, reads real requests and sends real answers, step by step and without threads.
"""

from __future__ import annotations

import array
import json
import os
import socket
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sealsvc.core.model import (
    ByteRange,
    Conflict,
    Fence,
    FileId,
    Holder,
    IoMode,
    Kind,
    Requirements,
    State,
)
from sealsvc.protocol.base import MAX_FDS, MAX_MESSAGE
from sealsvc.protocol.messages import Answer, Failure, decode_request, encode
from sealsvc.protocol.seals import Grant, Return, SealInfo
from tests.support.waiting import PATIENCE

T = TypeVar("T")


def seal(**changes: Any) -> SealInfo:
    info = SealInfo(
        id="5f1e" + "0" * 19 + "1",
        seqid=2,
        state=State.ACTIVE,
        file=FileId(2049, 77, 3),
        path="/pmem/db",
        filesystem="/pmem",
        range=ByteRange(1 << 20, 64 << 10),
        effective=ByteRange(1 << 20, 64 << 10),
        iomode=IoMode.RW,
        kind=Kind.EXCLUSIVE,
        conflict=Conflict.WAIT,
        fence=Fence.NONE,
        grace=10.0,
        ttl=0.0,
        tag="",
        require=Requirements(),
        enforcers=["fanotify", "bpf"],
        accepted_risks=[],
        holder=Holder(pid=4711, start_time=99, uid=0, comm="server"),
        extents=1,
        granted_at=1_700_000_000.0,
        state_since=1_700_000_000.0,
    )
    return msgspec.structs.replace(info, **changes)


ONE = seal()
TWO = seal(id="60aa" + "0" * 20, state=State.RECALLED, path="/pmem/[red]\x1b[2J")


def as_json(value: object) -> Any:
    return json.loads(encode(value))


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self._sock = sock

    def request(self, kind: type[T]) -> tuple[T, list[int]]:
        """The next request, which must be of this kind, and its descriptors."""
        data, fds, _, _ = socket.recv_fds(self._sock, MAX_MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        assert data, "sealctl closed the connection instead of asking"
        request = decode_request(data)
        assert isinstance(request, kind), request
        return request, list(fds)

    def _send(self, message: object, fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([encode(message)], rights)

    def answer(self, request: Any, result: Any, fds: list[int] | None = None) -> None:
        self._send(Answer(id=request.id, result=result), fds)

    def fail(self, request: Any, code: str, message: str = "no", **more: Any) -> None:
        self._send(Failure(id=request.id, code=code, message=message, **more))

    push = _send

    def take_back(self) -> None:
        """A return of ONE that succeeds."""
        request, _ = self.request(Return)
        assert request.seal == ONE.id
        self.answer(request, seal(state=State.RETURNED))

    def ended(self) -> bool:
        """Whether sealctl closes the connection without another request."""
        return self._sock.recv(1) == b""

    def close(self) -> None:
        self._sock.close()


class FakeDaemon:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(PATIENCE)
        self._connections: list[Connection] = []

    def accept(self) -> Connection:
        connection = Connection(self._listener.accept()[0])
        self._connections.append(connection)
        return connection

    def serve(self, kind: type[T], result: Any) -> T:
        """One connection with one request."""
        connection = self.accept()
        request, fds = connection.request(kind)
        assert not fds
        connection.answer(request, result)
        return request

    def grant(self, file: Path) -> tuple[Connection, Grant, int]:
        """Grant ONE, whatever is asked for. The int is the pidfd of the holder, the caller's."""
        connection = self.accept()
        request, [pidfd] = connection.request(Grant)
        fd = os.open(file, os.O_RDWR)
        connection.answer(request, ONE, [fd])
        os.close(fd)
        return connection, request, pidfd

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._listener.close()
        os.unlink(self.path)

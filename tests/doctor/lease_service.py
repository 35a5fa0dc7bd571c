"""A service of one page: it holds a lease on each file it is sent, recalls when the lease breaks,
and refuses shared seals. With it the doctor's own judgement is tested against a real mechanism.

Run as `python lease_service.py SOCKET`.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import sys
from typing import Any

import msgspec

from sealsvc.core.model import ByteRange, FileId, Holder, Kind, State
from sealsvc.protocol.messages import Answer, AnyRequest, Failure, encode
from sealsvc.protocol.seals import Grant, Recall, Return, SealInfo
from sealsvc.protocol.system import EnforcerInfo, ServiceStatus

_ids = iter(range(1, 1 << 30))


class Seal:
    def __init__(self, request: Grant, fd: int, client: socket.socket) -> None:
        st = os.fstat(fd)
        sealed = ByteRange(request.offset, request.length or st.st_size)
        self.client, self.fd, self.broken = client, fd, False
        self.info = SealInfo(
            id=f"{next(_ids):024x}",
            seqid=1,
            state=State.GRANTED,
            file=FileId(st.st_dev, st.st_ino),
            path="",
            filesystem="",
            range=sealed,
            effective=sealed,
            iomode=request.iomode,
            kind=request.kind,
            conflict=request.conflict,
            fence=request.fence,
            grace=request.grace,
            ttl=0,
            tag=request.tag,
            require=request.require,
            enforcers=["lease"],
            accepted_risks=[],
            holder=Holder(pid=1, start_time=0, uid=0, comm=""),
            extents=1,
            granted_at=0,
            state_since=0,
        )
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def look(self) -> None:
        """A lease under break is told as the one it is being broken to."""
        if not self.broken and fcntl.fcntl(self.fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK:
            self.broken = True
            info = self.info
            recall = Recall(
                seal=info.id,
                seqid=2,
                tag=info.tag,
                range=info.range,
                wanted=info.range,
                grace=1,
                reason="",
                fence=info.fence,
            )
            self.client.send(encode(recall))

    def drop(self) -> None:
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self.fd)


class Service:
    def __init__(self) -> None:
        self.seals: dict[str, Seal] = {}

    def answer(self, request: AnyRequest, fds: list[int], client: socket.socket) -> bytes:
        if isinstance(request, Grant):
            return encode(self._grant(request, fds[0], client))
        if isinstance(request, Return):
            seal = self.seals.pop(request.seal)
            seal.drop()
            return encode(Answer(id=request.id, result=seal.info))
        return encode(Answer(id=request.id, result=_status()))

    def _grant(self, request: Grant, fd: int, client: socket.socket) -> Answer | Failure:
        if request.kind is Kind.SHARED:
            os.close(fd)
            return Failure(id=request.id, code="risk-not-accepted", message="")
        try:
            seal = Seal(request, fd, client)
        except OSError:
            os.close(fd)
            return Failure(id=request.id, code="file-in-use", message="")
        self.seals[seal.info.id] = seal
        return Answer(id=request.id, result=seal.info)

    def look(self) -> None:
        for seal in self.seals.values():
            seal.look()

    def serve(self, path: str) -> None:
        alarms, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGIO, lambda *_: None)
        selector = selectors.DefaultSelector()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen()
        for source in (listener, alarms):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                self._ready(key.fileobj, listener, alarms, selector)

    def _ready(
        self, source: Any, listener: socket.socket, alarms: socket.socket, selector: Any
    ) -> None:
        if source is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
        elif source is alarms:
            alarms.recv(64)
            self.look()
        else:
            data, fds, _, _ = socket.recv_fds(source, 65536, 2)
            if not data:
                selector.unregister(source)
                source.close()
                return
            request = msgspec.json.decode(data, type=AnyRequest)
            source.send(self.answer(request, fds, source))


def _status() -> ServiceStatus:
    return ServiceStatus(
        version="0",
        protocol=1,
        pid=os.getpid(),
        uptime=0,
        simulated=False,
        kernel="",
        roots=[],
        enforcers=[EnforcerInfo(name="lease", available=True, reason="")],
        seals={},
        conflicts_waiting=0,
        connections=0,
        counters={},
    )


if __name__ == "__main__":
    Service().serve(sys.argv[1])

"""A control server with the real protocol over a real SEQPACKET socket, and nothing behind it.

Paths ask for trouble: /refuse/CODE is refused with that code, /drop ends the connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from api import examples, integrity
from sealsvc import messages as m
from sealsvc import overview, records
from sealsvc.copies.relocation.requests import Relocate
from sealsvc.copies.requests import CopyTrust, StartCopy
from sealsvc.errors import Refusal
from sealsvc.exports.requests import StopExport
from sealsvc.integrity import messages as pi
from tests.api.fake_seals import Seals


class Peer:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.watching = False

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(m.encode(message))


class FakeDaemon:
    """Serves from construction to close(). `requests` is everything that was asked, `happened` the
    number of events before the first client."""

    def __init__(self, path: Path, happened: int = 0, run: str = "") -> None:
        self.path, self.run = path, run
        self.started = time.monotonic()
        self.requests: list[m.AnyRequest] = []
        self._seals = Seals()
        self.seals = self._seals.held
        self.history: list[m.Event] = []
        self.seq = 0
        self.forgotten = 0
        self.denied: set[type] = set()
        self.page = 3  # events in one answer to PastEvents
        self.pages = 0  # that were asked for
        self.delay = 0.0  # seconds before each answer
        self._lock = threading.Lock()
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        path.unlink(missing_ok=True)
        for _ in range(happened):
            self.emit()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._spawn(self._accept)

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Inside this context each answer takes so long."""
        self.delay = seconds
        yield
        self.delay = 0.0

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def close(self) -> None:
        if self._listener.fileno() < 0:
            return
        # shutdown(), not close(), wakes threads that are blocked in accept and recv.
        self._listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(sock)
            with self._lock:
                self._peers.append(peer)
            self._spawn(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        with peer.sock:
            while data := self._receive(peer):
                request = m.decode_request(data)
                time.sleep(self.delay)
                with self._lock:
                    self.requests.append(request)
                    if getattr(request, "path", None) == "/drop":
                        break
                    peer.send(self._reply(peer, request))
        with self._lock:
            self._peers.remove(peer)

    @staticmethod
    def _receive(peer: Peer) -> bytes:
        try:
            return peer.sock.recv(m.MAX_MESSAGE)
        except OSError:
            return b""

    def emit(self, name: str = "alarm", seal: str | None = None, **data: Any) -> m.Event:
        with self._lock:
            self.seq += 1
            event = m.Event(seq=self.seq, time=time.time(), name=name, seal=seal, data=data)
            self.history.append(event)
            for peer in self._peers:
                if peer.watching:
                    peer.send(event)
        return event

    def forget(self, count: int) -> None:
        """Drop the oldest `count` events from what is kept for replay."""
        with self._lock:
            self.forgotten = self.history[count - 1].seq
            del self.history[:count]

    def hang_up(self) -> None:
        """End all connections and stay."""
        with self._lock:
            for peer in self._peers:
                peer.sock.shutdown(socket.SHUT_RDWR)

    def asked(self, kind: type[m.AnyRequest]) -> list[Any]:
        with self._lock:
            return [request for request in self.requests if isinstance(request, kind)]

    def _reply(self, peer: Peer, request: m.AnyRequest) -> m.Answer | m.Failure:
        try:
            if type(request) in self.denied:
                raise Refusal("denied", "policy does not allow this")
            return m.Answer(id=request.id, result=self._result(peer, request))
        except Refusal as refusal:
            return m.Failure(
                id=request.id,
                code=refusal.code,
                message=refusal.message,
                details=refusal.details,
                retry_after=refusal.retry_after,
            )

    def _result(self, peer: Peer, request: m.AnyRequest) -> Any:
        match request:
            case m.Grant():
                return self._seals.grant(request)
            case m.Show():
                return self._seals.find(request.seal)
            case m.Return():
                return self._seals.give_back(request)
            case m.List():
                return self._seals.page(request)
            case m.Renew() | m.Downgrade():
                return self._seals.find(request.seal)
            case m.RecallSeals(seal=str(seal)):
                self._seals.at(seal, request.seqid)
                return examples.RECALLS
            case m.Extents():
                self._seals.find(request.seal)
                return examples.EXTENTS
            case m.Mapped():
                self._seals.find(request.seal)
                return examples.MAPPING
            case m.PastEvents():
                self.pages += 1
                kept = [event for event in self.history if event.seq > request.since]
                gap = request.since < self.forgotten
                page = kept[: self.page]
                return m.EventPage(events=page, seq=self.seq, gap=gap, run=self.run)
            case m.Watch():
                return self._watch(peer, request)
            case m.Status():
                uptime = time.monotonic() - self.started
                return msgspec.structs.replace(examples.STATUS, uptime=uptime, run=self.run)
        return _FIXED[type(request)]

    def _watch(self, peer: Peer, request: m.Watch) -> m.Watching:
        peer.watching = True
        since = self.seq if request.since is None else request.since
        for event in self.history:
            if event.seq > since:
                peer.send(event)
        return m.Watching(seq=self.seq, gap=since < self.forgotten, run=self.run)


MEASURES = overview.MeasuresReport(
    run="",
    counters={"conflicts": {"held": 2}, "events": {"drift": 1}},
    latencies={
        name: overview.Histogram(bounds=[0.1, 1.0], counts=[3, 1, 0], sum=0.5)
        for name in ("grant", "return", "recall", "conflict")
    },
    gauges={"queue": {"grants": 0.0}, "lapses": {"bpf": 0.0}},
)

_FIXED: dict[type, Any] = {
    m.RecallSeals: examples.RECALLS,
    m.Audit: examples.AUDIT,
    m.Filesystems: examples.FILESYSTEMS,
    overview.Files: examples.FILES,
    overview.Holders: examples.HOLDERS,
    overview.Conflicts: examples.CONFLICTS,
    overview.ShowPolicy: examples.POLICY,
    overview.CheckPolicy: examples.POLICY,
    overview.ReloadPolicy: examples.POLICY,
    overview.StartJob: examples.JOB,
    StartCopy: examples.COPY,
    Relocate: examples.RELOCATION,
    StopExport: examples.EXPORT_STOPPED,
    CopyTrust: examples.COPY_TRUST,
    pi.PiProfiles: integrity.PROFILES,
    pi.PiQuery: integrity.ABILITY,
    pi.PiAttachments: pi.PiAttachmentList(attachments=[integrity.ATTACHMENT]),
    pi.PiAttach: integrity.ATTACHMENT,
    pi.PiDetach: integrity.ATTACHMENT,
    pi.PiVerify: integrity.REPORT,
    pi.PiScrub: integrity.ATTACHMENT,
    pi.PiBless: integrity.REPORT,
    pi.PiErrors: pi.PiErrorPage(errors=[integrity.ERROR], next=1),
    overview.ShowJob: examples.JOB,
    overview.CancelJob: examples.JOB,
    overview.Jobs: examples.JOBS,
    overview.Alarms: examples.ALARMS,
    overview.AcknowledgeAlarm: examples.ALARM,
    records.History: examples.HISTORY,
    records.Steps: examples.STEPS,
    records.PastConflicts: examples.PAST_CONFLICTS,
    records.MapChanges: examples.CHANGES,
    records.Trail: examples.TRAIL,
    records.VerifyTrail: examples.VERIFICATION,
    overview.Coverage: examples.COVERAGE,
    overview.Measures: MEASURES,
    m.IssueClaim: examples.CLAIM,
}

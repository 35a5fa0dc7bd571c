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

from sealsvc.core.errors import Refusal
from sealsvc.protocol import admin, base, events, history, seals, system
from sealsvc.protocol import integrity as pi
from sealsvc.protocol import messages as m
from sealsvc.protocol.copies import CopyTrust, StartCopy
from sealsvc.protocol.exports import StopExport
from sealsvc.protocol.relocation import Relocate
from sealsvc_api import examples, integrity
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
        self.history: list[events.Event] = []
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
            return peer.sock.recv(base.MAX_MESSAGE)
        except OSError:
            return b""

    def emit(self, name: str = "alarm", seal: str | None = None, **data: Any) -> events.Event:
        with self._lock:
            self.seq += 1
            event = events.Event(seq=self.seq, time=time.time(), name=name, seal=seal, data=data)
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
            case seals.Grant():
                return self._seals.grant(request)
            case seals.Show():
                return self._seals.find(request.seal)
            case seals.Return():
                return self._seals.give_back(request)
            case seals.List():
                return self._seals.page(request)
            case seals.Renew() | seals.Downgrade():
                return self._seals.find(request.seal)
            case seals.RecallSeals(seal=str(seal)):
                self._seals.at(seal, request.seqid)
                return examples.RECALLS
            case seals.Extents():
                self._seals.find(request.seal)
                return examples.EXTENTS
            case seals.Mapped():
                self._seals.find(request.seal)
                return examples.MAPPING
            case events.PastEvents():
                self.pages += 1
                kept = [event for event in self.history if event.seq > request.since]
                gap = request.since < self.forgotten
                page = kept[: self.page]
                return events.EventPage(events=page, seq=self.seq, gap=gap, run=self.run)
            case events.Watch():
                return self._watch(peer, request)
            case system.Status():
                uptime = time.monotonic() - self.started
                return msgspec.structs.replace(examples.STATUS, uptime=uptime, run=self.run)
        return _FIXED[type(request)]

    def _watch(self, peer: Peer, request: events.Watch) -> events.Watching:
        peer.watching = True
        since = self.seq if request.since is None else request.since
        for event in self.history:
            if event.seq > since:
                peer.send(event)
        return events.Watching(seq=self.seq, gap=since < self.forgotten, run=self.run)


MEASURES = admin.MeasuresReport(
    run="",
    counters={"conflicts": {"held": 2}, "events": {"drift": 1}},
    latencies={
        name: admin.Histogram(bounds=[0.1, 1.0], counts=[3, 1, 0], sum=0.5)
        for name in ("grant", "return", "recall", "conflict")
    },
    gauges={"queue": {"grants": 0.0}, "lapses": {"bpf": 0.0}},
)

_FIXED: dict[type, Any] = {
    seals.RecallSeals: examples.RECALLS,
    system.Audit: examples.AUDIT,
    system.Filesystems: examples.FILESYSTEMS,
    admin.Files: examples.FILES,
    admin.Holders: examples.HOLDERS,
    admin.Conflicts: examples.CONFLICTS,
    admin.ShowPolicy: examples.POLICY,
    admin.CheckPolicy: examples.POLICY,
    admin.ReloadPolicy: examples.POLICY,
    admin.StartJob: examples.JOB,
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
    admin.ShowJob: examples.JOB,
    admin.CancelJob: examples.JOB,
    admin.Jobs: examples.JOBS,
    admin.Alarms: examples.ALARMS,
    admin.AcknowledgeAlarm: examples.ALARM,
    history.History: examples.HISTORY,
    history.Steps: examples.STEPS,
    history.PastConflicts: examples.PAST_CONFLICTS,
    history.MapChanges: examples.CHANGES,
    history.Trail: examples.TRAIL,
    history.VerifyTrail: examples.VERIFICATION,
    admin.Coverage: examples.COVERAGE,
    admin.Measures: MEASURES,
    seals.IssueClaim: examples.CLAIM,
}

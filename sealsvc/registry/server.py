"""The registry's process: everything that touches the registry's disk, apart from the service.

It is started by the service (link.py) with one end of a stream socket, and does what comes through
that: entries go to the writer's thread, queries to a few threads of their own. Its disk may hang,
or end it by a SIGBUS: the service starts another, and sends again what was not settled. When the
socket's other end is closed it writes what it has, for a few seconds, and ends.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import sys
import threading
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.registry import wire
from sealsvc.registry.book import Book
from sealsvc.registry.queries import Queries
from sealsvc.runtime.config import RegistrySection
from sealsvc.runtime.journald import configure
from sealsvc.runtime.workers import Pool

QUERIES = (
    Queries.history,
    Queries.seal,
    Queries.transitions,
    Queries.conflicts,
    Queries.audit,
    Queries.verify,
    Queries.map_at_grant,
    Queries.map_difference,
)
_READ = 1 << 18
_PAUSE = 0.25  # seconds between two looks at whether the writer's troubles changed
_SAID = 4  # of these looks in which the state is said in any case: so is heard that we live
_CLOSING = 5.0  # seconds

_NAMED = {query.__name__: query for query in QUERIES}
_hints = functools.cache(typing.get_type_hints)


class Server:
    def __init__(self, sock: socket.socket, section: RegistrySection, run: str) -> None:
        self._sock, self._lock = sock, threading.Lock()
        self._settled, self._told = 0, wire.State(-1, 0, [])
        self._book = Book(
            section,
            lambda reason: self._send(wire.Alarm(reason)),
            lambda lost: self._send(wire.Recovered(lost)),
            settled=self._settle,
            run=run,
        )
        self._pool = Pool(wire.THREADS)

    def serve(self) -> bool:
        """Until the service hangs up. False when something of it hangs."""
        self._book.start()
        frames, looks = wire.Frames(), 0
        while True:
            ready, _, _ = select.select([self._sock], [], [], _PAUSE)
            if ready:
                try:
                    data = self._sock.recv(_READ)
                except OSError:
                    data = b""
                if not data:
                    break
                for frame in frames.feed(data):
                    self._take(wire.from_service(frame))
            looks += 1
            self._say(always=looks % _SAID == 1 and not ready)
        self._pool.stop()
        return self._book.close(_CLOSING)

    def _take(self, message: wire.FromService) -> None:
        if isinstance(message, wire.Ask):
            self._pool.submit(self._answer, message)
        else:
            self._book.put(wire.entry(message))

    def _answer(self, ask: wire.Ask) -> None:
        try:
            query = _NAMED[ask.query]
            hints = _hints(query)
            names = [name for name in hints if name not in ("return", *ask.options)]
            given = dict(zip(names, ask.arguments, strict=False)) | ask.options
            arguments = {name: _converted(value, hints[name]) for name, value in given.items()}
            result = getattr(self._book.queries, ask.query)(**arguments)
        except Refusal as refusal:
            self._send(wire.refused(ask.number, refusal))
        except Exception as error:
            self._send(wire.refused(ask.number, Refusal("io-error", f"the registry: {error!r}")))
        else:
            self._send(wire.Told(ask.number, result))

    def _settle(self, number: int) -> None:
        self._settled = number
        self._say()

    def _say(self, *, always: bool = False) -> None:
        state = wire.State(self._settled, self._book.lost, self._book.troubles)
        if always or state != self._told:
            self._told = state
            self._send(state)

    def _send(self, message: wire.FromRegistry) -> None:
        """From any thread. Waits for the service to read."""
        try:
            with self._lock:
                self._sock.sendall(wire.framed(message))
        except OSError:  # it is gone: serve() sees that
            pass


def _converted(value: Any, hint: Any) -> Any:
    if hint == ExtentMap:
        return np.frombuffer(value, dtype=np.uint64).reshape(-1, 4)
    return msgspec.convert(value, hint)


def main(fd: int, section: str, run: str, level: str) -> None:
    # The terminal's ^C is the service's to heed; and a full disk must be an error (RLIMIT_FSIZE).
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    Path("/proc/self/comm").write_text("seal-registry")
    configure(level)
    registry = msgspec.convert(json.loads(section), RegistrySection)
    well = Server(socket.socket(fileno=fd), registry, run).serve()
    sys.stderr.flush()
    # Threads that hang keep nobody from ending.
    os._exit(0 if well else 1)

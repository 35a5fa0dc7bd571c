"""The registry's process, seen from the service: started, spoken to, watched, and started again.

Nothing here blocks the event loop. What is sent waits in the backlog until the process has room
for it; what is asked has a deadline. A process that ends is followed by another after a pause; one
that does not answer is told of, and killed after a while. One that is stuck in the kernel (state D)
cannot be killed: it has no descriptor of the service's but its end of the socket, and there is no
other until it is gone.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import time
import typing
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.registry import wire
from sealsvc.registry.backlog import Backlog
from sealsvc.registry.health import Health
from sealsvc.registry.queries import Queries
from sealsvc.runtime import children
from sealsvc.runtime.config import RegistrySection
from sealsvc.runtime.limits import Asked, FairQueue

T = TypeVar("T")
P = ParamSpec("P")
Query = Callable[Concatenate[Queries, P], T]  # a method of Queries, not bound

log = logging.getLogger(__name__)

_WINDOW = 2048  # entries that are sent and not settled
_TURN = 1 << 18  # bytes that are sent, or read, before others have their turn
_LINGER = 0.05  # seconds in which entries are gathered
_TICK = 0.5  # seconds
_SILENCE, _GIVEN_UP = 10.0, 60.0  # seconds without progress: an alarm, SIGKILL
_STARTING = 45.0  # instead of _SILENCE, until the first entry is written: it opens what there is
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds before the next is started
_LASTING = 60.0  # seconds after which a process is not one that ends at once
_PATIENCE = 12.0  # seconds for a query: the process limits most of them to 10

_PROCESS, _QUEUE = "process", "queue"


class Link:
    """`alarm` and `recovered` as of Health; `quiet`: its seconds."""

    def __init__(
        self,
        section: RegistrySection,
        backlog: Backlog,
        alarm: Callable[[str], None],
        recovered: Callable[[int], None],
        *,
        run: str,
        quiet: float = 5.0,
    ) -> None:
        self._section, self._backlog, self._run = section, backlog, run
        self._alarm, self._recovered = alarm, recovered
        self._health = Health(alarm, recovered, quiet)
        self.restarts = -1  # of the process, in this run
        self.state = wire.State(0, 0, [])  # as the process said it last
        self._lost_before = 0  # by processes that have ended
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._sock: socket.socket | None = None
        self._unsent = memoryview(b"")
        self._frames = wire.Frames()
        self._writing = self._closing = False
        self._flush: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._started_at = self._progress_at = self._heard_at = 0.0
        self._pause = _FIRST_PAUSE
        self._killed = False
        self._asked: dict[int, asyncio.Future[wire.Told | wire.Refused]] = {}
        self._numbers = itertools.count(1)
        self._queue = FairQueue(wire.THREADS)
        self._ended = asyncio.Event()

    # For the service

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn()
        self._tick()

    @property
    def lost(self) -> int:
        return self._backlog.lost + self._lost_before + self.state.lost

    @property
    def troubles(self) -> list[str]:
        return [*self._health.reasons, *self.state.troubles]

    def wake(self) -> None:
        """There is something in the backlog."""
        if self._flush is None and self._sock is not None and not self._writing:
            self._flush = self._loop.call_later(_LINGER, self._send_more)

    def full(self) -> None:
        """There was no room in the backlog."""
        if not self._health.has(_QUEUE):
            self._health.trouble(_QUEUE, f"{len(self._backlog)} events wait", self.lost - 1)

    async def ask(self, user: Asked, query: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
        """The result of a method of Queries, called with these. Raises Refusal, try-later when it
        does not come in time. Of those who wait each user has its turn."""
        try:
            async with asyncio.timeout(_PATIENCE), self._queue.turn(user):
                told = await self._call(query.__name__, list(args), options)
        except TimeoutError:
            raise Refusal(
                "try-later", "the registry does not answer: its disk may hang", retry_after=10.0
            ) from None
        if isinstance(told, wire.Refused):
            raise wire.refusal(told)
        hint = typing.get_type_hints(query)["return"]
        if hint == ExtentMap:
            return typing.cast(T, wire.map_of(told.result))
        return typing.cast(T, msgspec.convert(told.result, hint))

    async def close(self, timeout: float) -> bool:
        """Have what waits written, for at most `timeout` seconds. False when something is left."""
        self._closing = True
        self._backlog.tell_gap()
        deadline = time.monotonic() + timeout
        while len(self._backlog) and self._sock is not None and time.monotonic() < deadline:
            self._send_more()
            await asyncio.sleep(0.02)
        left = len(self._backlog)
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
                    await self._ended.wait()
        if left or self._process is not None:
            number = "" if self._process is None else f", process {self._process.pid} does not end"
            log.warning("%d events are not in the registry%s", left, number)
        for timer in (self._flush, self._ticking):
            if timer is not None:
                timer.cancel()
        self._disconnect()
        return not left

    # The process

    def _spawn(self) -> None:
        section = msgspec.json.encode(self._section).decode()
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        self._ended.clear()
        children.start(
            "sealsvc.registry.server",
            (section, self._run, level),
            socket.SOCK_STREAM,
            self._spawned,
        )

    def _spawned(self, made: subprocess.Popen[bytes] | OSError, sock: socket.socket) -> None:
        self.restarts += 1
        if isinstance(made, OSError):
            sock.close()
            self._failed(f"its process cannot be started: {made.strerror}")
            return
        self._process, self._sock, self._frames = made, sock, wire.Frames()
        self._pidfd = os.pidfd_open(made.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._loop.add_reader(sock, self._read)
        self._started_at = self._progress_at = self._heard_at = time.monotonic()
        self._killed = False
        self.wake()

    def _exited(self) -> None:
        process = self._process
        assert process is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = process.wait()
        if self._sock is not None:
            self._read()  # its last words
        self._process, self._pidfd = None, -1
        self._disconnect()
        self._ended.set()
        if not self._closing:
            self._failed(f"its process {process.pid} ended {children.end_of(status)}")

    def _failed(self, why: str) -> None:
        self._health.trouble(_PROCESS, why, self.lost)
        if self._closing:
            return
        if time.monotonic() - self._started_at > _LASTING:
            self._pause = _FIRST_PAUSE
        self._loop.call_later(self._pause, self._spawn)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _disconnect(self) -> None:
        self._lost_before += self.state.lost
        self.state = wire.State(0, 0, [])
        self._unsent = memoryview(b"")
        self._backlog.send_again()
        for question in self._asked.values():
            if not question.done():
                question.set_exception(
                    Refusal("try-later", "the registry's process ended", retry_after=1.0)
                )
        if self._sock is not None:
            self._stop_writing()
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(_TICK, self._tick)
        silence = time.monotonic() - self._progress_at
        waits = self._backlog.sent > 0 and not self.state.troubles
        patience = _SILENCE if self.state.settled else _STARTING
        if self._process is not None and (waits or self._silent) and silence > patience:
            pid = self._process.pid
            self._health.trouble(
                _PROCESS, f"its process {pid} does nothing for {silence:.0f} s", self.lost
            )
            if silence > _GIVEN_UP and not self._killed:
                self._killed = True
                self._process.kill()
        if self._backlog.tell_gap():
            self.wake()
        if self._backlog.gap is None:
            self._health.well(_QUEUE)
        over = self._health.over(self.lost)
        if over is not None:
            self._health.tell(over.lost)

    @property
    def _silent(self) -> bool:
        """It says its state each second, if it can."""
        return time.monotonic() - self._heard_at > _SILENCE

    # Sending

    def _send_more(self) -> None:
        """Until the socket is full, or the turn is over."""
        self._flush = None
        sock, room = self._sock, _TURN
        if sock is None:
            return
        while room > 0:
            if not self._unsent and not self._next_batch():
                self._stop_writing()
                return
            try:
                sent = sock.send(self._unsent)
            except BlockingIOError:
                break
            except OSError:  # it is gone: _exited() comes
                self._stop_writing()
                return
            self._unsent = self._unsent[sent:]
            room -= sent
        if not self._writing:
            self._writing = True
            self._loop.add_writer(sock, self._send_more)

    def _stop_writing(self) -> None:
        if self._writing and self._sock is not None:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _next_batch(self) -> bool:
        batch = bytearray()
        if not self._backlog.sent:
            self._progress_at = time.monotonic()
        while len(batch) < _TURN // 4 and self._backlog.sent < _WINDOW:
            entry = self._backlog.take()
            if entry is None:
                break
            batch += wire.framed(wire.record(entry))
        self._unsent = memoryview(bytes(batch))
        return bool(batch)

    async def _call(
        self, query: str, arguments: list[Any], options: dict[str, Any]
    ) -> wire.Told | wire.Refused:
        if self._sock is None:
            raise Refusal("try-later", "the registry's process is not there", retry_after=1.0)
        number = next(self._numbers)
        answer: asyncio.Future[wire.Told | wire.Refused] = self._loop.create_future()
        self._asked[number] = answer
        question = wire.framed(wire.Ask(number, query, arguments, options))
        try:
            # Behind what is on its way: so it is answered from what was recorded before it.
            self._unsent = memoryview(bytes(self._unsent) + question)
            self._send_more()
            return await answer
        finally:
            del self._asked[number]

    # Reading

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(_TURN)
        except OSError:
            return
        if not data:
            self._loop.remove_reader(self._sock)
            return
        self._heard_at = time.monotonic()
        for frame in self._frames.feed(data):
            self._take(wire.from_registry(frame))

    def _take(self, message: wire.FromRegistry) -> None:
        match message:
            case wire.State():
                self._take_state(message)
            case wire.Alarm():
                self._alarm(message.reason)
            case wire.Recovered():
                self._recovered(message.lost)
            case wire.Told() | wire.Refused():
                answer = self._asked.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message)

    def _take_state(self, state: wire.State) -> None:
        if state.settled > self.state.settled or not self._backlog.sent:
            self._progress_at = time.monotonic()
            self._health.well(_PROCESS)
        self.state = state
        self._backlog.settle(state.settled)
        if self._backlog.waiting:
            self.wake()

"""The process that hears errors of file systems, seen from the service: started, and started again
when it ends.

Nothing here blocks the event loop. A process that was killed may remain in the kernel until no
operation waits for a seal on its file systems. The kernel closes its socket first
(process.raised), and the service then starts another process beside it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sealsvc.integrity.kernel import wire
from sealsvc.runtime import children

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds before the next is started
_LASTING = 60.0  # seconds after which a process is not one that ends at once
_ANSWER = 30.0  # seconds after which an alarm says that a file system is not listened to
_ENDING = 1.0  # seconds that the service's end waits for it
_STUCK = 4  # processes that have not ended yet, beside which no other is started


@dataclass(frozen=True)
class Heard:
    """What Link calls, on the event loop. `ready`: a process waits for requests. `gap`: the process
    that listened to these devices has ended, for this reason. `silent`: it does not answer for a
    device. `message`: it said so."""

    ready: Callable[[], None]
    gap: Callable[[set[int], str], None]
    silent: Callable[[int], None]
    message: Callable[[wire.FromProcess], None]


class Link:
    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: dict[int, subprocess.Popen[bytes]] = {}  # by pidfd
        self._listening: set[int] = set()  # devices
        self._asked: dict[int, asyncio.TimerHandle] = {}
        self._starting = self._closing = False
        self._spawned_once = asyncio.Event()
        self._gone = asyncio.Event()  # there is no process, and none is started
        self._gone.set()
        self._next: asyncio.TimerHandle | None = None
        self._pause, self._started_at = _FIRST_PAUSE, 0.0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._spawn()

    async def started(self) -> None:
        """When the first process is there, or could not be started: a service that answers has the
        children that it will have."""
        await self._spawned_once.wait()

    @property
    def waits(self) -> bool:
        """A process waits for requests."""
        return self._sock is not None

    def watch(self, device: int, fd: int, *, monitor: bool) -> None:
        """Listen to the file system of `fd`, which stays the caller's."""
        if self._sock is None:
            return
        message = wire.encoded(wire.Watch(device, monitor))
        # Full (BlockingIOError): it is asked again with the next seal, and told as silent.
        with suppress(OSError):
            socket.send_fds(self._sock, [message], [fd])
        if device not in self._asked:
            self._asked[device] = self._loop.call_later(_ANSWER, self._silent, device)

    async def stop(self) -> None:
        """At the service's end."""
        self._closing = True
        if self._next is not None:
            self._next.cancel()
        self._hang_up()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), _ENDING)
        for pidfd, process in self._ending.items():
            log.info("process %d ends when nobody waits for a seal any more", process.pid)
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    # The process

    def _spawn(self) -> None:
        self._next, self._starting = None, True
        self._gone.clear()
        children.start("sealsvc.integrity.kernel.process", (), socket.SOCK_SEQPACKET, self._spawned)

    def _spawned(self, made: subprocess.Popen[bytes] | OSError, sock: socket.socket) -> None:
        self._starting, self._started_at = False, time.monotonic()
        self._spawned_once.set()
        if isinstance(made, OSError):
            sock.close()
            self._note_gone()
            self._heard.gap(set(), f"cannot be started: {made.strerror}")
            self._again()
            return
        self._process, self._sock = made, sock
        if self._closing:
            self._hang_up()
            return
        self._loop.add_reader(sock, self._read)
        self._heard.ready()

    def _again(self) -> None:
        if self._closing or self._next is not None or len(self._ending) >= _STUCK:
            return
        if time.monotonic() - self._started_at > _LASTING:
            self._pause = _FIRST_PAUSE
        self._next = self._loop.call_later(self._pause, self._spawn)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _hang_up(self) -> None:
        """The process ends, or has ended."""
        for timer in self._asked.values():
            timer.cancel()
        self._asked.clear()
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        if self._process is not None:
            pidfd = os.pidfd_open(self._process.pid)
            self._ending[pidfd] = self._process
            self._loop.add_reader(pidfd, self._ended, pidfd)
            self._process = None

    def _ended(self, pidfd: int) -> None:
        """It can be waited for, and does not make this wait."""
        process = self._ending.pop(pidfd)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        status = process.wait()
        by = children.end_of(status)
        log.info("process %d, which heard errors of file systems, ended %s", process.pid, by)
        self._note_gone()
        if self._sock is None and not self._starting:
            self._again()

    def _note_gone(self) -> None:
        if self._process is None and not self._ending and not self._starting:
            self._gone.set()

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(wire.MOST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take(wire.decoded(data))
            return
        assert self._process is not None
        pid, listening = self._process.pid, self._listening
        self._listening = set()
        self._hang_up()
        self._heard.gap(listening, f"process {pid} has ended")
        self._again()

    def _take(self, message: wire.FromProcess) -> None:
        if not isinstance(message, wire.Told) and (timer := self._asked.pop(message.device, None)):
            timer.cancel()
        if isinstance(message, wire.Watched):
            self._listening.add(message.device)
        self._heard.message(message)

    def _silent(self, device: int) -> None:
        del self._asked[device]
        self._heard.silent(device)

"""The process that hears what the kernel reports of file systems (link.py starts it).

Each request is carried out in a thread: a file system that hangs keeps no other from being
listened to. When the socket's other end is closed, the process ends; it may have to wait for that
until nobody waits for an answer of a fanotify group on a file system that it has marked.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from sealsvc.integrity.kernel import wire, xfs
from sealsvc.integrity.kernel.fanotify import Group
from sealsvc.integrity.kernel.wire import KernelError

_PAUSE = 1.0  # seconds until the next are read: the kernel merges those that come meanwhile
_TOLD = 20  # errors of one file system in that time; more are counted in the last of them
_HIGH = 512  # see raised()


def raised(fd: int) -> int:
    """The same as a high descriptor. A process that ends releases its files one after the other,
    the highest first: so the service learns of the end also when a fanotify group, which comes
    later, keeps the process (native/gate/groups.c)."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(_HIGH, most // 2))
    os.close(fd)
    return high


class Listener:
    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._lock = sock, threading.Lock()
        self._group: Group | OSError
        try:
            self._group = Group()
        except OSError as error:
            self._group = error
        self._monitors: dict[int, int] = {}  # descriptor -> device
        self._more = os.eventfd(0)  # there is another monitor

    def serve(self) -> None:
        """Until the service hangs up."""
        due = 0.0
        while True:
            rest = max(0.0, due - time.monotonic())
            sources = [] if rest else [*self._monitors]
            if not rest and isinstance(self._group, Group):
                sources.append(self._group.fd)
            wanted = [self._sock.fileno(), self._more, *sources]
            ready, _, _ = select.select(wanted, [], [], rest or None)
            if self._sock.fileno() in ready and not self._take():
                return
            if self._more in ready:
                os.eventfd_read(self._more)
            if heard := [fd for fd in sources if fd in ready]:
                self._hear(heard)
                due = time.monotonic() + _PAUSE

    def _take(self) -> bool:
        try:
            message, fds, _, _ = socket.recv_fds(self._sock, wire.MOST, 1)
        except ConnectionResetError:  # it was killed before it had read what it was sent
            return False
        if not message:
            return False
        if fds:
            request = wire.decoded_watch(message)
            threading.Thread(target=self._watch, args=(request, fds[0]), daemon=True).start()
        return True

    def _watch(self, request: wire.Watch, fd: int) -> None:
        try:
            if request.monitor and self._has_monitor(request.device):
                source = "xfs"
            else:
                if isinstance(self._group, OSError):
                    raise self._group
                self._group.watch(fd, request.device)
                source = "fanotify"
        except OSError as error:
            self._send(wire.Failed(request.device, str(error)))
        else:
            self._send(wire.Watched(request.device, source))
        finally:
            os.close(fd)

    def _has_monitor(self, device: int) -> bool:
        """By it XFS tells all that it would tell fanotify, and more."""
        with self._lock:
            try:
                monitor = xfs.open_monitor(device, list(self._monitors))
            except xfs.Taken:
                return False
            if monitor < 0:
                return False
            self._monitors[monitor] = device
        os.eventfd_write(self._more, 1)
        return True

    def _hear(self, ready: Iterable[int]) -> None:
        for fd in ready:
            device = self._monitors.get(fd)
            if device is not None:
                errors, lost, mounted = xfs.read(fd)
                self._tell(device, errors, lost)
                if not mounted:
                    del self._monitors[fd]
                    os.close(fd)
            elif isinstance(self._group, Group):
                found = sorted(self._group.read(), key=itemgetter(0))
                for device, some in groupby(found, key=itemgetter(0)):
                    self._tell(device, [error for _, error in some], 0)

    def _tell(self, device: int, errors: list[KernelError], lost: int) -> None:
        if more := errors[_TOLD:]:
            last = errors[_TOLD - 1]
            count = last.count + sum(error.count for error in more)
            errors = [*errors[: _TOLD - 1], wire.counted(last, count)]
        if errors or lost:
            self._send(wire.Told(device, errors, lost))

    def _send(self, message: wire.FromProcess) -> None:
        with suppress(OSError):  # the service is gone: serve() sees that
            self._sock.sendall(wire.encoded(message))


def main(fd: int) -> None:
    # The terminal's ^C is the service's to heed.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Path("/proc/self/comm").write_text("seal-fserrors")
    os.chdir("/")
    Listener(socket.socket(fileno=raised(fd))).serve()
    # Threads that hang keep nobody from ending.
    os._exit(0)

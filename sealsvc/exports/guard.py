"""The guard of an export whose requests the kernel serves.

The kernel goes on using the map when the process that holds the seal has died, and the service lets
go of a dead holder's seal once nothing maps the file. So a second process maps it: the seal stands
until that one has suspended the device. What would be needed is something of the kernel's own that
ends both; there is none, so both processes must not be killed at once.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import socket
import time
from contextlib import suppress

from sealsvc.exports.base import Mapped
from sealsvc.exports.protect import protect

_MAP, _UNMAP, _END, _DONE = b"m", b"u", b"e", b"d"
_POLL = 0.05


class Guard:
    """In the holder: the guard that it has. `fd` is the sealed file."""

    def __init__(self, driver: Mapped, fd: int, wait: float) -> None:
        """`wait`: seconds for which requests wait for a recovery after the holder's death, before
        they fail."""
        ours, theirs = socket.socketpair()
        holder = os.pidfd_open(os.getpid())
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _close_all_but(fd, theirs.fileno(), holder)
                _Guarding(driver, fd, theirs, holder).run(wait)
                status = 0
            finally:
                os._exit(status)
        theirs.close()
        os.close(holder)
        self._channel = ours
        self.pidfd = os.pidfd_open(self.pid)

    def map(self) -> None:
        self._ask(_MAP)

    def unmap(self) -> None:
        self._ask(_UNMAP)

    def end(self) -> None:
        """The device is gone, or somebody else's."""
        with suppress(OSError):
            self._ask(_END)
        self.reap()

    def reap(self) -> None:
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)

    def _ask(self, what: bytes) -> None:
        self._channel.sendall(what)
        if self._channel.recv(1) != _DONE:
            raise ConnectionResetError("the guard has ended")


def _close_all_but(*kept: int) -> None:
    """Whatever else the holder has open must end with the holder: its lock, its connection."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with suppress(OSError):
                os.close(int(name))


class _Guarding:
    def __init__(self, driver: Mapped, fd: int, channel: socket.socket, holder: int) -> None:
        self._driver, self._fd, self._channel, self._holder = driver, fd, channel, holder
        self._mapping: mmap.mmap | None = None

    def run(self, wait: float) -> None:
        signal.set_wakeup_fd(-1)  # the holder's, which is closed here
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with the device
        protect(lock_memory=True)
        poller = select.poll()
        poller.register(self._holder, select.POLLIN)
        poller.register(self._channel, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._holder in ready:
                self._orphaned(wait)
                return
            if not self._obey(self._channel.recv(1)):
                return

    def _obey(self, what: bytes) -> bool:
        if what == b"":  # the holder is about to end: its pidfd tells when
            select.select([self._holder], [], [])
            return True
        if what == _MAP:
            self._mapping = mmap.mmap(self._fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        else:
            self._unmap()
        self._channel.sendall(_DONE)
        return what != _END

    def _unmap(self) -> None:
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def _orphaned(self, wait: float) -> None:
        """The seal must not end before the device is suspended; then it may."""
        self._driver.hold()
        self._unmap()
        os.close(self._fd)
        deadline = time.monotonic() + wait
        name, runtime = self._driver.spec.name, self._driver.runtime
        while time.monotonic() < deadline:
            record = runtime.find(name)
            if record is None or (record.lives and record.device):  # stopped, or served again
                return
            time.sleep(_POLL)
        self._driver.fence()

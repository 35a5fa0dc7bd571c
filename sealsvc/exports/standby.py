"""An export whose next process waits (`--restart`, where a type can have it).

The supervisor keeps the listening socket, and a second process of the program beside the one that
serves: loaded, and waiting to be told to start. Between a kill and the next request is a new seal;
clients that connect meanwhile wait in the socket's queue. It touches no file of the export.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from sealsvc.exports.base import Standing
from sealsvc.exports.protect import protect
from sealsvc.exports.supervise import AWAITED, FAILED, TOLD, lengthened, told_within

START = "SEALSVC_EXPORT_START"  # the descriptor that the program reads a byte from before it seals
_FIRST_FREE = 10
_LISTENING = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_SOON = 0.02  # seconds between looks whether the process serves, and the next one may be loaded


class _Process:
    """One that serves after go()."""

    def __init__(
        self, driver: Standing, listening: socket.socket, lock: int, mask: set[int]
    ) -> None:
        start, self._start = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _become(driver, (listening.fileno(), start, lock), mask)
        os.close(start)

    def go(self) -> None:
        with suppress(BrokenPipeError):  # it has ended, too: its parent will find it so
            os.write(self._start, b"\n")
        self.close()

    def close(self) -> None:
        """One that was not told to start ends."""
        if self._start >= 0:
            os.close(self._start)
        self._start = -1


def _become(driver: Standing, descriptors: tuple[int, int, int], mask: set[int]) -> None:
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        protect(lock_memory=False)
        # The lock goes with the process, too.
        listening, start, _ = (fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FREE) for fd in descriptors)
        os.dup2(listening, _LISTENING)
        os.close(listening)
        command, more = driver.standing()
        told = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), START: str(start)}
        os.execvpe(command[0], command, os.environ | more | told)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(FAILED)


class Standbys:
    """`begins(pid)` is called before a process starts to serve; `served(pid)` returns whether that
    process has ever served. Each process inherits the lock."""

    def __init__(
        self,
        driver: Standing,
        lock: int,
        begins: Callable[[int], None],
        served: Callable[[int], bool],
    ) -> None:
        self._driver, self._lock, self._begins, self._served = driver, lock, begins, served
        self._next: _Process | None = None
        self._mask: set[int] = set()

    def serve(self, *, recover: bool) -> int:
        """As supervise(): an exit status."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
        protect(lock_memory=True)
        with self._driver.listen() as self._listening:
            try:
                return self._serve(recover)
            finally:
                if self._next is not None:
                    os.kill(self._next.pid, signal.SIGKILL)  # it holds nothing
                    os.waitpid(self._next.pid, 0)

    def _serve(self, recover: bool) -> int:
        ever, pause = recover, 0.0
        while True:
            process = self._next or self._loaded()
            self._next = None
            self._begins(process.pid)
            process.go()
            status, told = self._end_of(process)
            if told or status == 0:
                return 0 if status == -signal.SIGTERM else abs(status)
            served = self._served(process.pid)
            if not served and not ever:
                return abs(status)
            ever, pause = True, 0.0 if served else lengthened(pause)
            print(
                f"process {process.pid} ended with {status}: another goes on",
                file=sys.stderr,
                flush=True,
            )
            if pause and told_within(pause):
                return 0

    def _loaded(self) -> _Process:
        return _Process(self._driver, self._listening, self._lock, self._mask)

    def _end_of(self, process: _Process) -> tuple[int, bool]:
        """Its exit status or minus the signal that ended it, and whether we were told to end. Once
        it serves, another waits."""
        told = False
        while True:
            if told or self._next is not None:
                number = signal.sigwaitinfo(AWAITED).si_signo
            else:
                found = signal.sigtimedwait(AWAITED, _SOON)
                number = found.si_signo if found else 0
                if not number and self._served(process.pid):
                    self._next = self._loaded()
            if number in TOLD:
                told = True
                os.kill(process.pid, signal.SIGTERM)  # not reaped yet: the number is still its
            ended, status = os.waitpid(process.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), told
            self._look_after_next()

    def _look_after_next(self) -> None:
        if self._next is not None and os.waitpid(self._next.pid, os.WNOHANG)[0]:
            self._next.close()
            self._next = None

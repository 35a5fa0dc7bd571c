"""Services forked from a process that has imported their code already: the imports are most of a
start, and take ten times as long in the lab. What is forked then runs `sealsvc.cli.service`, as
`python -m` does."""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[2]
_MODULE = "sealsvc.cli.service"
_IMPORTED_LATER = ("sealsvc.service.systems", "sealsvc.service.daemon", "sealsvc.service.release")
_REQUEST = 1 << 16  # bytes, at most


class Started:
    """A process that the preloaded one forked: what tests use of subprocess.Popen."""

    def __init__(self, pidfd: int, ended: int, pid: int) -> None:
        """`ended`: a pipe which has the exit status once the process was reaped."""
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd, self._ended = pidfd, ended

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(_MODULE, timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            self.returncode = int(os.read(self._ended, 16) or b"-9")
            os.close(self._ended)
            os.close(self._pidfd)
        return self.returncode


class Preloaded:
    """The process that forks. It has one thread, and nothing has run in it but imports."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.preloaded", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], stderr: IO[str]
    ) -> Started:
        """Run the service's command with these arguments, in the repository's directory."""
        ended, status = os.pipe()
        try:
            asked = json.dumps([list(arguments), dict(environment)]).encode()
            socket.send_fds(self._requests, [asked], [1, stderr.fileno(), status])
        finally:
            os.close(status)
        answer, (pidfd,), _, _ = socket.recv_fds(self._requests, 16, 1)
        return Started(pidfd, ended, int(answer))

    def close(self) -> None:
        self._requests.close()
        self._process.wait()


class _Forks:
    """What the preloaded process has forked."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._woken, self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._status: dict[int, int] = {}  # the pipe for the exit status, by pid
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup)

    def serve(self) -> None:
        """Until the tests end; in what is forked, it does not return."""
        while True:
            ready, _, _ = select.select([self._requests, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._requests in ready:
                request, fds, _, _ = socket.recv_fds(self._requests, _REQUEST, 3)
                if not request:
                    return
                self._fork(json.loads(request), fds)

    def _reap(self) -> None:
        for pid in list(self._status):
            reaped, status = os.waitpid(pid, os.WNOHANG)
            if reaped:
                pipe = self._status.pop(pid)
                with suppress(BrokenPipeError):
                    os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(pipe)

    def _fork(self, request: list[Any], fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._requests.close()
            for fd in (self._woken, self._wakeup, *self._status.values()):
                os.close(fd)
            _become(*request, *fds)
        pidfd = os.pidfd_open(pid)  # not reaped before this function ends
        socket.send_fds(self._requests, [str(pid).encode()], [pidfd])
        for fd in (pidfd, *fds[:2]):
            os.close(fd)
        self._status[pid] = fds[2]


def _become(
    arguments: list[str], environment: dict[str, str], stdout: int, stderr: int, status: int
) -> NoReturn:
    """Go on as `python -m sealsvc.cli.service` with these arguments."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.close(status)
    for fd, number in ((stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [_MODULE, *arguments]
    runpy.run_module(_MODULE, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    for name in (_MODULE, *_IMPORTED_LATER):
        importlib.import_module(name)
    del sys.modules[_MODULE]  # it is run, not imported, in each that is forked
    gc.freeze()
    _Forks(socket.socket(fileno=int(sys.argv[1]))).serve()

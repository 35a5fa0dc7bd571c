"""The doctor's end of the second process (sealsvc.doctor.subject)."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sealsvc
from sealsvc.doctor.operations import Operation
from sealsvc.doctor.scene import Scene

_READY_WITHIN = 60.0  # seconds: only a hang takes as long


@dataclass(frozen=True)
class Outcome:
    """How an operation ended; `seconds` from the "go". `errno` is None for a success, and for a
    tool that failed without naming one."""

    errno: int | None
    failed: bool
    detail: str
    seconds: float


class SubjectLost(Exception):
    """The second process is not there or does not answer: a defect of the doctor."""


class Actor:
    """One operation in one child: `prepare`, then `go`, then wait for `outcome`."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self._outcome: Outcome | None = None

    def fileno(self) -> int:
        return self._channel.fileno()

    def prepare(self) -> Outcome | None:
        """Wait until all that comes before the grant is done; an outcome if it failed."""
        message = self._receive(_READY_WITHIN)
        if message is None:
            raise SubjectLost("the second process did not get ready in time")
        if "ready" not in message:
            self._outcome = Outcome(**message)
        return self._outcome

    def go(self) -> None:
        self._channel.send(b"go")

    def outcome(self, timeout: float) -> Outcome | None:
        """The end of the operation, or None if there is none within `timeout` seconds."""
        if self._outcome is None and (message := self._receive(timeout)) is not None:
            self._outcome = Outcome(**message)
        return self._outcome

    def asleep(self) -> bool:
        """Whether no thread of the child, and of what it started, is running or could run."""
        return not any(state == "R" for state in _states(self._pid))

    def _receive(self, timeout: float) -> dict[str, Any] | None:
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        if not poller.poll(max(0.0, timeout) * 1000):
            return None
        data = self._channel.recv(64 * 1024)
        if not data:
            raise SubjectLost("the second process ended without a word")
        message: dict[str, Any] = json.loads(data)
        return message


def _states(pid: int) -> Iterator[str]:
    """Of each thread of a process and of its descendants; proc(5), /proc/PID/stat, field 3."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # it ended meanwhile
            yield (task / "stat").read_text().rpartition(")")[2].split()[0]
            for child in (task / "children").read_text().split():
                yield from _states(int(child))


class Subject:
    """The warm server that forks the children. One operation at a time."""

    def __init__(self) -> None:
        self._server, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = str(Path(sealsvc.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sealsvc.doctor.subject", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )
        self._server.settimeout(30.0)

    def close(self) -> None:
        self._server.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @contextmanager
    def play(self, operation: Operation, scene: Scene) -> Iterator[Actor]:
        """A child for one operation; at the end nothing of it is left running."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fields = {k: v for k, v in asdict(scene).items() if isinstance(v, str)}
        job = {"play": {"operation": operation.name, "scene": fields}}
        with ours:
            with theirs:
                pid = self._ask(job, [theirs.fileno()])["pid"]
            try:
                yield Actor(ours, pid)
            finally:
                if self._ask({"end": pid}, [])["left"]:
                    raise SubjectLost(f"process {pid} ({operation.name}) cannot be killed")

    def _ask(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        try:
            socket.send_fds(self._server, [json.dumps(message).encode()], fds)
            data = self._server.recv(64 * 1024)
        except OSError as error:
            raise SubjectLost(f"the second process does not answer: {error}") from error
        if not data:
            raise SubjectLost("the second process is gone")
        answer: dict[str, Any] = json.loads(data)
        return answer

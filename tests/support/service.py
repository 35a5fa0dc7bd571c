"""A real service as a process of its own."""

from __future__ import annotations

import os
import socket as sockets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release
from tests.support.preloaded import Preloaded, Started
from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
MiB = 1 << 20
RISKS = 'accept_risks = ["all"]\n'


_preloaded: list[Preloaded] = []


def preload() -> None:
    """From now on, services are forked from a process that has imported their code."""
    if not _preloaded:
        _preloaded.append(Preloaded())


def unload() -> None:
    while _preloaded:
        _preloaded.pop().close()


class Running:
    """The daemon as a process of its own, that can be killed and started again."""

    def __init__(
        self, directory: Path, roots: list[Path], more: str = "", service: str = ""
    ) -> None:
        """`more` of the configuration goes on in its section policy, `service` into service."""
        self.directory, self.socket = directory, directory / "control.sock"
        self.config, self.log = directory / "sealsvc.toml", directory / "log"
        self.config.write_text(
            f'[service]\nsocket = "{self.socket}"\n{service}'
            f"[policy]\nroots = [{', '.join(chr(34) + str(r) + chr(34) for r in roots)}]\n" + more
        )
        self.process: subprocess.Popen[bytes] | Started | None = None
        self.may_trip = False  # is a wrong judgement part of the test?
        self.tree = ROOT  # whose service it is (versions.py)

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        arguments = ["serve", "--config", str(self.config)]
        environment = {k: v for k, v in os.environ.items() if k != "SEALSVC_SOCKET"}
        # Fault points are armed when the code is imported.
        anew = not _preloaded or self.tree != ROOT or "SEALSVC_FAULTS" in environment
        with self.log.open("a") as log:
            if anew:
                command = [sys.executable, "-m", "sealsvc.cli.service", *arguments]
                self.process = subprocess.Popen(command, cwd=self.tree, stderr=log, env=environment)
            else:
                self.process = _preloaded[0].start(arguments, environment, log)

    def ready(self) -> None:
        process = self.process
        assert process is not None
        until(lambda: self._answers() or process.poll() is not None)
        assert process.poll() is None, self.log.read_text()

    def _answers(self) -> bool:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def keeper(self) -> int:
        """The number of its keeper's process."""
        path = str(self.directory / "keeper.sock")
        return next(
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if path in (process.info["cmdline"] or [])
        )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        assert status == 0, self.log.read_text()

    def end(self) -> None:
        """Stop, and let go of whatever is still sealed."""
        assert self.process is not None
        try:
            if self.process.poll() is None:
                self.stop()
        finally:
            release(ServiceSection(socket=str(self.socket)))
            until(lambda: not (self.directory / "keeper.sock").exists())
        said = self.log.read_text()
        assert "Traceback" not in said, said
        assert self.may_trip or "tripwire:" not in said, said


@contextmanager
def served(running: Running) -> Iterator[Running]:
    """It serves, and is ended after."""
    running.start()
    try:
        running.ready()
        yield running
    finally:
        running.end()


@contextmanager
def serving(directory: Path, roots: list[Path], more: str = "") -> Iterator[str]:
    """The daemon while the context lasts, whose value is its socket."""
    with served(Running(directory, roots, more)) as running:
        yield str(running.socket)

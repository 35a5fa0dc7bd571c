"""A real daemon on real file systems, and the processes that meet it."""

from __future__ import annotations

import os
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import List
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release

ROOT = Path(__file__).parents[2]
MiB = 1 << 20
PATIENCE = 120.0  # some things are slow in the lab


class Running:
    """The daemon as a process of its own, that can be killed and started again."""

    def __init__(self, directory: Path, roots: list[Path], more: str = "") -> None:
        self.directory, self.socket = directory, directory / "control.sock"
        self.config, self.log = directory / "sealsvc.toml", directory / "log"
        self.config.write_text(
            f'[service]\nsocket = "{self.socket}"\n'
            f"[policy]\nroots = [{', '.join(chr(34) + str(r) + chr(34) for r in roots)}]\n" + more
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.may_trip = False  # is a wrong judgement part of the test?
        self.tree = ROOT  # whose service it is (versions.py)

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sealsvc.cli.service", "serve", "--config", self.config],
                cwd=self.tree,
                stderr=log,
                env={k: v for k, v in os.environ.items() if k != "SEALSVC_SOCKET"},
            )

    def ready(self) -> None:
        process = self.process
        assert process is not None
        until(lambda: self._answers() or process.poll() is not None)
        assert process.poll() is None, self.log.read_text()

    def _answers(self) -> bool:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.socket)) == 0

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


def until(condition: Callable[[], bool], seconds: float = PATIENCE, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.01)


RISKS = 'accept_risks = ["all"]\n'


@pytest.fixture(scope="session", params=["xfs", "ext4"])
def root(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def socket(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    more = RISKS + "[fence]\nsignal_grace = 0.5\n"
    with serving(tmp_path_factory.mktemp("daemon"), [root], more) as path:
        yield path


@pytest.fixture
def client(socket: str) -> Iterator[Client]:
    """Tests share the service: each returns every seal that it was granted."""
    with Client(socket, timeout=PATIENCE) as made:
        yield made
        left = [(seal.path, seal.state) for seal in made.call(List).result.seals]
        assert not left, f"seals are left: {left}"


@pytest.fixture
def file(root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    made = root / f"{request.node.name.split('[')[0]}-{os.getpid()}"
    made.write_bytes(os.urandom(MiB))
    with made.open("rb") as opened:
        os.fsync(opened.fileno())
    yield made
    made.unlink(missing_ok=True)


def refusal(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value

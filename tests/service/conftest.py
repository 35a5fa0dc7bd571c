"""A real daemon on real file systems, and the processes that meet it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.errors import Refusal

ROOT = Path(__file__).parents[2]
MiB = 1 << 20
PATIENCE = 20.0


@contextmanager
def serving(directory: Path, roots: list[Path], more: str = "") -> Iterator[str]:
    """The daemon as a process of its own; the context's value is its socket."""
    socket, config = directory / "control.sock", directory / "sealsvc.toml"
    config.write_text(
        f'[service]\nsocket = "{socket}"\n'
        f"[policy]\nroots = [{', '.join(chr(34) + str(r) + chr(34) for r in roots)}]\n" + more
    )
    with (directory / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sealsvc.cli.service", "serve", "--config", str(config)],
            cwd=ROOT,
            stderr=log,
            env={k: v for k, v in os.environ.items() if k != "SEALSVC_SOCKET"},
        )
        try:
            until(lambda: socket.exists() or process.poll() is not None)
            assert process.poll() is None, (directory / "log").read_text()
            yield str(socket)
        finally:
            process.terminate()
            status = process.wait(PATIENCE)
        text = (directory / "log").read_text()
        assert status == 0, text
        assert "Traceback" not in text, text


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


RISKS = 'accept_risks = ["all"]\n'


@pytest.fixture(scope="session", params=["xfs", "ext4"])
def root(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def socket(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("daemon"), [root], RISKS) as path:
        yield path


@pytest.fixture
def client(socket: str) -> Iterator[Client]:
    with Client(socket, timeout=PATIENCE) as made:
        yield made


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

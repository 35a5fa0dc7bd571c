"""A daemon with a ring's worth of seals, and processes that meet them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client.ring import News, RingClient
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
BLOCK = 4096
SIZE = 1 << 20
ROUNDS = int(os.environ.get("SEALSVC_RING_KILLS", "20"))


@pytest.fixture
def running(xfs: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [xfs], RISKS + "[fence]\nsignal_grace = 0.5\n")) as made:
        yield made


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `./dev libseal` has installed libseal."""
    if not os.access(ROOT / ".venv" / "bin" / "meson", os.X_OK):
        pytest.skip("./dev build makes the environment with meson")
    prefix = tmp_path_factory.mktemp("libseal")
    subprocess.run([ROOT / "dev", "libseal", "--prefix", prefix], check=True, timeout=550)
    return prefix


@pytest.fixture
def file(xfs: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    made = xfs / f"{request.node.name.split('[')[0]}-{os.getpid()}"
    made.write_bytes(os.urandom(SIZE))
    with made.open("rb") as opened:
        os.fsync(opened.fileno())
    yield made
    made.unlink(missing_ok=True)


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    made = os.open(file, os.O_RDWR)
    yield made
    os.close(made)


@pytest.fixture
def client(running: Running) -> Iterator[RingClient]:
    with RingClient(str(running.socket), timeout=PATIENCE) as made:
        yield made


@contextmanager
def intruder(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, which is over when the context is left."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, fcntl, mmap, time\n" + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def truncating(path: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    with intruder("os.truncate(sys.argv[1], int(sys.argv[2]))", path, size) as process:
        yield process


def hears(client: RingClient, wanted: Callable[[News], bool]) -> News:
    """The first of the news that is wanted; the others are passed over."""
    found: list[News] = []
    until(lambda: bool(found.extend(n for n in client.dispatch() if wanted(n)) or found))
    return found[0]

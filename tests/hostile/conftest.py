"""The service as others meet it, on one file system; with small limits where a test wants them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scratch import PREFIX
from tests.support.service import RISKS, MiB, Running, served


@pytest.fixture(scope="session")
def root(xfs: Path) -> Path:
    xfs.chmod(0o777)
    return xfs


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where unprivileged users reach the socket: not below pytest's own directory, which is closed
    again whenever another run of pytest begins."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def more() -> str:
    """Further lines of the configuration; a module overrides it."""
    return ""


@pytest.fixture(scope="module")
def running(root: Path, place: Path, more: str) -> Iterator[Running]:
    """A service of the module's own."""
    with served(Running(place, [root], RISKS + more)) as made:
        yield made


@pytest.fixture
def file(root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """For everybody to read and write."""
    made = root / f"{request.node.name.split('[')[0]}-{os.getpid()}"
    made.write_bytes(os.urandom(MiB))
    made.chmod(0o666)
    with made.open("rb") as opened:
        os.fsync(opened.fileno())
    yield made
    made.unlink(missing_ok=True)

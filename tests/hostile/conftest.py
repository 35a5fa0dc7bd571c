"""The service as others meet it, on one file system; with small limits where a test wants them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.conftest import RISKS, MiB, Running


@pytest.fixture(scope="session")
def root(xfs: Path) -> Path:
    xfs.chmod(0o777)
    return xfs


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where unprivileged users reach the socket."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        if directory.stat().st_uid == os.getuid():
            directory.chmod(directory.stat().st_mode | 0o055)
    return tmp_path


@pytest.fixture
def more() -> str:
    """Further lines of the configuration; tests override it."""
    return ""


@pytest.fixture
def running(root: Path, place: Path, more: str) -> Iterator[Running]:
    """A service of the test's own."""
    made = Running(place, [root], RISKS + more)
    made.start()
    try:
        made.ready()
        yield made
    finally:
        made.end()


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

"""A service on XFS, and exports of its files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exports.exporting import Exports
from tests.support.service import RISKS, Running, served

MiB = 1 << 20


@pytest.fixture
def running(xfs: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [xfs], RISKS + "[fence]\nsignal_grace = 0.5\n")) as made:
        yield made


@pytest.fixture
def exports(running: Running, tmp_path: Path) -> Exports:
    (tmp_path / "exports").mkdir()
    return Exports(tmp_path / "exports", running.socket)


@pytest.fixture
def image(xfs: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    made = xfs / f"{request.node.name.split('[')[0]}-{os.getpid()}"
    made.write_bytes(os.urandom(16 * MiB))
    yield made
    made.unlink(missing_ok=True)

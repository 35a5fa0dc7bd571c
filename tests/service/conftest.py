"""A real service on real file systems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List
from tests.support.service import RISKS, MiB, serving
from tests.support.waiting import PATIENCE


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

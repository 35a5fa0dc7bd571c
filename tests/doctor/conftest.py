"""Real file systems on loop devices for the doctor's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sealsvc.doctor.actor import Subject
from sealsvc.doctor.bench import Bench
from tests.support.scratch import MiB, leftovers, mounted

sys.path.insert(0, str(Path(__file__).parent))  # its tests import each other's files


@pytest.fixture(scope="session", params=["xfs", "ext4", "btrfs"])
def scratch(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A mounted file system; at the end no mount and no loop device of it is left."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    with mounted(request.param, 768 * MiB) as path:
        yield path
        assert list(path.glob(".sealsvc-doctor-*")) == []
    assert [left for left in leftovers() if left.startswith(str(path.parent))] == []


@pytest.fixture
def subject() -> Iterator[Subject]:
    made = Subject()
    yield made
    made.close()


@pytest.fixture
def bench(scratch: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(str(scratch), stack)

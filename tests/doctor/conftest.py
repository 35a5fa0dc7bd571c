"""Real file systems on loop devices for the doctor's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import standin

standin.install()

from sealsvc.doctor.actor import Subject  # noqa: E402
from sealsvc.doctor.bench import Bench  # noqa: E402


def mounts() -> list[str]:
    return sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def loops() -> list[str]:
    return sorted(path.parent.name for path in Path("/sys/block").glob("loop*/loop"))


@pytest.fixture(scope="session", params=["xfs", "ext4", "btrfs"])
def scratch(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A mounted file system; at the end no mount and no loop device more than before."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    before = mounts(), loops()
    with standin.mounted(request.param, 768 * 1024 * 1024) as path:
        yield path
        assert list(path.glob(".sealsvc-doctor-*")) == []
    assert (mounts(), loops()) == before


@pytest.fixture
def subject() -> Iterator[Subject]:
    made = Subject()
    yield made
    made.close()


@pytest.fixture
def bench(scratch: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(str(scratch), stack)

"""Shared by every test: real file systems, and the check that nothing is left behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.overlay_turns import OverlayTurns
from tests.support.scratch import leftovers, mounted
from tests.support.service import preload, unload

pytest_plugins = ["tests.lab.plugin"]


@pytest.fixture(scope="session")
def xfs() -> Iterator[Path]:
    with mounted("xfs", mkfs_args=["-m", "reflink=1"]) as point:
        yield point


@pytest.fixture(scope="session")
def xfs_noreflink() -> Iterator[Path]:
    with mounted("xfs", mkfs_args=["-m", "reflink=0"]) as point:
        yield point


@pytest.fixture(scope="session")
def ext4() -> Iterator[Path]:
    with mounted("ext4") as point:
        yield point


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """The whole run's mounts, loop devices and processes are gone at its end."""
    yield
    unload()
    assert not psutil.Process().children(recursive=True), "processes are left"
    assert not leftovers()


@pytest.fixture(scope="session")
def overlay_turns() -> Iterator[OverlayTurns]:
    turns = OverlayTurns()
    yield turns
    turns.close()


@pytest.fixture(autouse=True)
def no_overlays_of_others(
    request: pytest.FixtureRequest, overlay_turns: OverlayTurns
) -> Iterator[None]:
    alone = request.node.get_closest_marker("overlays") is not None
    with overlay_turns.turn(alone=alone):
        yield


@pytest.fixture(autouse=True)
def no_descriptor_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test gives back the descriptors and children it took, but for session fixtures."""
    wanted = request.node.get_closest_marker("kernel") is not None
    if wanted or request.node.get_closest_marker("lab"):
        preload()
    process = psutil.Process()
    before = set(os.listdir("/proc/self/fd")) if wanted else set()
    children = _children(process) if wanted else set()
    yield
    if wanted:
        deadline = time.monotonic() + 60  # what was told to end may take a moment
        while left := _children(process) - children:
            assert time.monotonic() < deadline, f"children are left: {left}"
            time.sleep(0.02)
        after = set(os.listdir("/proc/self/fd"))
        left = {fd: _target(fd) for fd in after - before}
        assert len(after) <= len(before) + 1, f"descriptors are left: {left}"


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "closed by now"


def _children(process: psutil.Process) -> set[int]:
    """Without a browser's, which come and go as it likes."""
    found = set()
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "chrom" not in child.name():
                found.add(child.pid)
    return found

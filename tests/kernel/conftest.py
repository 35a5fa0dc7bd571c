"""A file of 16 pages on each file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from held_files import PAGE, close_quietly


@pytest.fixture(params=["xfs", "ext4"])
def fs(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def path(fs: Path) -> Iterator[Path]:
    made = fs / "file"
    made.write_bytes(bytes(16 * PAGE))
    yield made
    made.unlink()


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[[int], int]]:
    """Open the file; closed at the end unless the test did."""
    with ExitStack() as stack:

        def open_it(flags: int = os.O_RDWR) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(close_quietly, fd)
            return fd

        yield open_it

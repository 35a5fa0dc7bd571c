from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # until tests/conftest.py does

from scratch import mounted


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

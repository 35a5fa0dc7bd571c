"""Kills under load with everything the lab has: DAX, pre-content events, and bpf behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.pmem import mounted_dax
from tests.service.test_kills import killed_under_load

pytestmark = [pytest.mark.lab(cpus=2), pytest.mark.slow, pytest.mark.timeout(400)]


def test_nothing_moves_and_nothing_is_lost(tmp_path: Path) -> None:
    with mounted_dax("xfs", reflink=True) as root:
        killed_under_load(root, tmp_path, 8, 3.0)

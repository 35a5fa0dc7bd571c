"""Kills under load with everything the lab has: DAX, pre-content events, and bpf behind them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.pmem import mounted_dax
from tests.service.test_kills import killed_under_load

KILLS = int(os.environ.get("SEALSVC_LAB_KILLS", "3"))  # with each set of enforcers

pytestmark = [pytest.mark.lab(cpus=2), pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("enforcers", [["fanotify", "bpf"], ["bpf"]], ids="+".join)
def test_nothing_moves_and_nothing_is_lost(tmp_path: Path, enforcers: list[str]) -> None:
    with mounted_dax("xfs", reflink=True) as root:
        killed_under_load(root, tmp_path, KILLS, 3.0, enforcers)

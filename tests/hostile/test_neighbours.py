"""All attacks at once: nobody else notices much. `python -m tests.hostile` measures for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.neighbours import LEAST, measured
from tests.support.service import Running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

HANGS = 50.0  # seconds; on processors that the attackers keep busy, and beside other tests


def test_others_work_on(running: Running, root: Path, tmp_path: Path) -> None:
    found = measured(running, root, tmp_path / "fuse", quiet=3, attack=12, rest=100)
    print(found.table())
    assert found.attacked.failures == []
    assert found.attacked.times.keys() == found.quiet.times.keys()
    for name, times in found.attacked.times.items():
        assert len(times) >= LEAST, found.table()
        assert found.attacked.worst(name, 1) < HANGS, found.table()
    assert found.losses() == [], found.table()

"""systemd's own judgement of the units."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")

# What systemd-analyze(1) calls exposure, from 0 to 10; the service and its keeper must share the
# host's mount namespace, which costs most of theirs.
EXPOSURE = {"sealsvc.service": 5.0, "sealsvc-keeper.service": 5.0, "sealsvc-api.service": 1.5}


@pytest.mark.parametrize("name", EXPOSURE)
def test_exposure(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE[name]


def test_nothing_gives_the_service_a_mount_namespace() -> None:
    """Descriptors of clients would be of mounts that it cannot see."""
    text = (UNITS / "sealsvc.service").read_text()
    for directive in ("Protect", "PrivateTmp", "PrivateDevices", "ReadWritePaths", "BindPaths"):
        assert not re.search(rf"^{directive}\w*=", text, re.M), directive

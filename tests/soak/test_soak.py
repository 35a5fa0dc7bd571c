"""A short soak with each run of the tests; a long one is `./dev soak`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("SEALSVC_SOAK", "20"))

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(SECONDS + 650)]


def test_nothing_moves_and_nothing_leaks() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    command = [sys.executable, "-m", "tests.soak", "--minutes", str(SECONDS / 60)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "drift = 0, leaks = 0, trouble = 0" in done.stdout

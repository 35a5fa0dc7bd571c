"""What the README shows first, `sudo ./dev demo`, works."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.commands import ROOT

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]


def test_the_demo() -> None:
    """Round one waits for the holder, round two is refused; each is asserted by the demo itself."""
    done = subprocess.run(
        ["timeout", "550", sys.executable, ROOT / "deploy" / "demo.py"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "then the hole was punched" in done.stdout
    assert "intruder: refused after" in done.stdout
    assert done.stdout.endswith("demo: done; nothing is left behind\n")

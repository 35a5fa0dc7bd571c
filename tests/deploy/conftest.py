"""The Debian package, made once for all who want it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package() -> Path:
    if shutil.which("dpkg-shlibdeps") is None:
        pytest.skip("there is no dpkg-shlibdeps (Debian: dpkg-dev)")
    if sys.base_prefix != "/usr":
        pytest.skip("a package for Debian is built with Debian's python3")
    done = subprocess.run(
        [ROOT / "dev", "deb"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])

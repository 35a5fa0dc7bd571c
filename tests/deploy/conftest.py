"""The Debian package, made once in a run for all who want it."""

from __future__ import annotations

import fcntl
import os
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
    # The workers of a run (pytest-xdist) share it.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    with (ROOT / "build" / "package.run").open("a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        made.seek(0)
        before, _, name = made.read().partition(" ")
        if not run or before != run:
            name = make()
            made.truncate(0)
            made.write(f"{run} {name}")
        return Path(name)


def make() -> str:
    done = subprocess.run(
        [ROOT / "dev", "deb"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]

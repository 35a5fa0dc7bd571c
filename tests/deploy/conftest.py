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
        [ROOT / "dev", "deb"], capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


_NO_MIRROR = 77  # of tests/fresh-debian

# In namespaces of their own: mounts and processes end with them. The machine is in memory; what it
# is given, and what it gives back, lies in /given.
_MACHINE = """
set -e
root=$1 suite=$2 machine=$3 given=$4
shift 4
mkdir -p "$machine"
mount -t tmpfs -o size=8g tmpfs "$machine"
SUITE=$suite "$root/tests/fresh-debian" "$machine/new"
mkdir "$machine/new/given" "$machine/new/mnt/pmem"
mount --bind "$given" "$machine/new/given"
truncate -s 320M "$machine/image"
mkfs.xfs -q "$machine/image"
mount -o loop "$machine/image" "$machine/new/mnt/pmem"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root chroot "$machine/new" "$@"
"""


def on_fresh_debian(suite: str, given: Path, *command: str, seconds: float) -> str:
    """What a command says on a Debian with nothing installed, an XFS at /mnt/pmem and `given` at
    /given. Fails when it does. Skips the test where there is no root, mmdebstrap or mirror."""
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("needs root and mmdebstrap")
    machine = given.with_name(f"{given.name}-machine")
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*namespaces, "sh", "-c", _MACHINE, "machine", ROOT, suite, machine, given, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    print(done.stdout)
    if done.returncode == _NO_MIRROR:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout
    return done.stdout

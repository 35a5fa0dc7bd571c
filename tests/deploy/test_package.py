"""The Debian package: made by one command, clean, and its whole life on a fresh Debian."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_it_has_no_error(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("there is no lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error", package],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_brings_what_traces_take(package: Path, tmp_path: Path) -> None:
    """To whoever is not given this virtual environment besides."""
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True, timeout=60)
    (packages,) = tmp_path.glob("usr/lib/sealsvc/lib/python3*/site-packages")
    program = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from api import serve, spans\n"
        "serve._spans().close()\n"
        "print(spans.__file__)"
    )
    done = subprocess.run(
        [f"/usr/bin/{packages.parent.name}", "-I", "-S", "-c", program, packages],
        env={"OTEL_TRACES_EXPORTER": "otlp"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"{packages}/api/spans.py\n", done.stderr


# In namespaces of their own: mounts and processes end with them, and the machine is in memory.
LIFE = """
set -e
mount -t tmpfs -o size=2g tmpfs "$1"
"$2/tests/fresh-debian" "$1/new"
mkdir "$1/new/package"
cp "$3" "$2/tests/deploy/package-life" "$1/new/package"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    chroot "$1/new" /package/package-life "/package/${3##*/}"
"""


def test_its_life_on_a_fresh_debian(package: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("needs root and mmdebstrap")
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*namespaces, "sh", "-c", LIFE, "life", tmp_path, ROOT, package],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("package-life: done\n")

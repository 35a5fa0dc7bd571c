"""The Debian package: made by one command, clean, and its whole life on a fresh Debian."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import on_fresh_debian

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
        "from sealsvc_api import serve, spans\n"
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
    assert done.stdout == f"{packages}/sealsvc_api/spans.py\n", done.stderr


def test_its_life_on_a_fresh_debian(package: Path, tmp_path: Path) -> None:
    """Of this machine's; tests/deploy/test_debians.py has both, from a clone."""
    given = tmp_path / "given"
    given.mkdir()
    for file in (package, ROOT / "tests/deploy/package-life"):
        shutil.copy(file, given)
    command = ("/given/package-life", f"/given/{package.name}")
    said = on_fresh_debian("bookworm", given, *command, seconds=540)
    assert said.endswith("package-life: done\n")

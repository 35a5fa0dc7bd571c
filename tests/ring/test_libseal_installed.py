"""`./dev libseal` in an empty directory: a program is compiled against what it installs as
pkg-config says, with the shared library and with the static one, and seals a block."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ring.test_ring_demo import runs_the_demo
from tests.ring.test_ring_native import ROOT, run
from tests.support.service import Running

pytestmark = [
    pytest.mark.timeout(600),  # it compiles
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("pkg-config") is None, reason="there is no pkg-config"),
]


def words(prefix: Path, *asked: str) -> list[str]:
    done = subprocess.run(
        ["pkg-config", *asked, "libseal"],
        env={**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("how", ["shared", "static"])
def test_a_program_is_compiled_and_seals(
    installed: Path, running: Running, file: Path, tmp_path: Path, how: str
) -> None:
    program, source = tmp_path / "demo_seal", ROOT / "examples" / "embed" / "demo_seal.c"
    if how == "shared":
        flags = words(installed, "--cflags", "--libs")
    else:
        flags = ["-static", *words(installed, "--static", "--cflags", "--libs")]
    run("gcc", "-Wall", "-Wextra", "-Werror", "-o", program, source, *flags)
    needed = run("readelf", "-d", program)
    assert ("libseal.so.1" in needed) is (how == "shared")
    runs_the_demo(program, file, running, LD_LIBRARY_PATH=str(installed / "lib"))


def test_the_version_and_the_manual_are_installed(installed: Path) -> None:
    assert words(installed, "--modversion") == ["0.1.0"]
    pages = {page.name for page in (installed / "share/man/man3").iterdir()}
    assert {"libseal.3", "seal_open.3", "seal_grant.3"} <= pages

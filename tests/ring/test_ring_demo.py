"""The page that is shown to those who embed libseal, compiled and run as it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.ring.conftest import truncating
from tests.ring.test_ring_native import LIBSEAL, ROOT, library, run
from tests.support.service import Running
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.kernel]


def runs_the_demo(program: Path, file: Path, running: Running, **more: str) -> None:
    """From its grant to its end, by a recall; `more` is put into its environment."""
    with subprocess.Popen(
        [program, file],
        env={**os.environ, "SEALSVC_SOCKET": str(running.socket), **more},
        stdout=subprocess.PIPE,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("sealed: byte 0 is at ")
        with truncating(file, 0):
            assert demo.stdout.readline() == "recalled: giving 4096 bytes back\n"
        assert demo.stdout.readline() == "returned\n"
        assert demo.wait(PATIENCE) == 0


def test_the_demo(running: Running, file: Path, tmp_path: Path) -> None:
    program, built = tmp_path / "demo_seal", library().parent
    source = ROOT / "examples" / "embed" / "demo_seal.c"
    run("gcc", "-Wall", "-Wextra", "-Werror", f"-I{LIBSEAL}", source, "-o", program,
        f"-L{built}", "-lseal", f"-Wl,-rpath,{built}")  # fmt: skip
    runs_the_demo(program, file, running)
    assert file.stat().st_size == 0


def test_the_demo_is_one_page() -> None:
    source = ROOT / "examples" / "embed" / "demo_seal.c"
    assert len(source.read_text().splitlines()) < 100

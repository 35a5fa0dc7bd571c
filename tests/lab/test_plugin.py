"""The marker `lab`: what becomes of tests that run inside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.guest import ROOT

pytestmark = [pytest.mark.usefixtures("lab"), pytest.mark.timeout(900)]

_AFTER = "tests/unit/test_imports.py"


def _pytest(*arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-v", "-rA", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_reports_come_back_and_the_dead_are_told() -> None:
    said = _pytest("tests/lab/samples.py", _AFTER)
    for expected in (
        "PASSED tests/lab/samples.py::test_here",
        "PASSED tests/lab/samples.py::test_passes",
        "FAILED tests/lab/samples.py::test_fails",
        "said in the guest",
        ": told in the guest",
        "FAILED tests/lab/samples.py::test_kills_the_guest - the guest died",
        "sysrq triggered crash",
        "PASSED tests/lab/samples.py::test_comes_after",
        "PASSED tests/lab/samples.py::test_on_kernels[6.12]",
        "PASSED tests/lab/samples.py::test_on_kernels[6.1]",
        "torn down here",
    ):
        assert expected in said, said
    assert " 2 failed" in said, said
    assert " 1 skipped" in said, said
    assert " error" not in said, said


def test_without_qemu_they_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = _pytest("tests/lab/samples.py", "-k", "test_passes")
    assert "samples.py::test_passes SKIPPED" in said
    assert ": the lab needs qemu-system-x86_64, " in said

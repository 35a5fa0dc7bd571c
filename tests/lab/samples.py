"""Tests for `test_plugin.py` to run: some of them end as tests should not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def of_the_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where tests run in two places, so does this."""
    yield
    print("torn down", "in the guest" if "SEALSVC_LAB" in os.environ else "here")


@pytest.mark.usefixtures("of_the_module")
def test_here() -> None:
    assert "SEALSVC_LAB" not in os.environ


@pytest.mark.lab
@pytest.mark.usefixtures("of_the_module")
def test_passes() -> None:
    assert os.uname().release == os.environ["SEALSVC_LAB"]


@pytest.mark.lab
def test_fails() -> None:
    print("said in the guest")
    assert os.getpid() == 0


@pytest.mark.lab
def test_skips() -> None:
    pytest.skip("told in the guest")


@pytest.mark.lab
def test_kills_the_guest() -> None:
    Path("/proc/sys/kernel/printk").write_text("7")
    Path("/proc/sysrq-trigger").write_text("c")


@pytest.mark.lab
def test_comes_after() -> None:
    pass


@pytest.mark.lab(kernel=["6.12", "6.1"], pmem=0)
def test_on_kernels(lab_kernel: str) -> None:
    assert os.uname().release.startswith(f"{lab_kernel}.")
    assert not Path("/dev/pmem0").exists()

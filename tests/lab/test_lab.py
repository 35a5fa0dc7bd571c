"""The lab itself: what it promises to those who run things in it."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest

from sealsvc.doctor import syscalls
from tests.lab import DEFAULT, SERIES, LabError, kernels, run, unavailable
from tests.lab.pmem import mounted_dax

MAP_SHARED_VALIDATE, MAP_SYNC = 0x03, 0x80000


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> None:
    """For tests that boot a guest themselves, from the host."""
    if request.config.getoption("--no-lab"):
        pytest.skip("--no-lab")
    if reason := unavailable(DEFAULT):
        pytest.skip(reason)


needs_lab = pytest.mark.usefixtures("lab")


@needs_lab
def test_a_command_gives_back_its_output_and_status(tmp_path: Path) -> None:
    script = "echo out; echo err >&2; cat $SEALSVC_LAB_SHARE/in; echo made >$SEALSVC_LAB_SHARE/out"
    (tmp_path / "in").write_text("from the host\n")
    forbidden = "touch /etc/made-by-the-lab"
    done = run(["sh", "-c", f"{script}; {forbidden}; exit 7"], share=tmp_path, pmem=0)
    assert (done.status, done.stdout, done.stderr) == (7, "out\nfrom the host\n", "err\n")
    assert (tmp_path / "out").read_text() == "made\n"
    assert not Path("/etc/made-by-the-lab").exists(), "the guest wrote to the host"


@needs_lab
def test_a_command_that_takes_too_long_is_ended() -> None:
    with pytest.raises(LabError, match="longer than 1 s"):
        run(["sleep", "60"], timeout=1.0, pmem=0)


@needs_lab
def test_a_panic_is_told_with_the_end_of_the_console() -> None:
    with pytest.raises(LabError, match=r"(?s)the guest died.*sysrq triggered crash"):
        run(["sh", "-c", "echo 7 >/proc/sys/kernel/printk; echo c >/proc/sysrq-trigger"], pmem=0)


def test_what_is_missing_is_the_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_path", lambda: "/nonexistent")
    assert "qemu-system-x86_64" in str(kernels.unavailable.__wrapped__("0.0-none"))


@pytest.mark.lab
def test_a_marked_test_runs_inside() -> None:
    assert os.uname().release == os.environ["SEALSVC_LAB"]
    assert os.uname().release.startswith(DEFAULT)
    assert os.geteuid() == 0


@pytest.mark.lab
@pytest.mark.parametrize("lab_kernel", SERIES)
def test_every_kernel_boots_with_persistent_memory(lab_kernel: str) -> None:
    assert os.uname().release.startswith(lab_kernel + ".")
    assert Path("/dev/pmem0").is_block_device()
    assert "bpf" in Path("/sys/kernel/security/lsm").read_text()


@pytest.mark.lab
@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_persistent_memory_is_mapped_synchronously(fstype: str) -> None:
    with mounted_dax(fstype) as point:
        path = point / "file"
        path.write_bytes(bytes(mmap.PAGESIZE))
        with (
            path.open("r+b") as file,
            mmap.mmap(file.fileno(), mmap.PAGESIZE, flags=MAP_SHARED_VALIDATE | MAP_SYNC) as mapped,
        ):
            address = syscalls.address(mapped)
            smaps = Path("/proc/self/smaps").read_text()
    entry = smaps[smaps.index(f"{address:x}-") :]
    flags = re.search(r"^VmFlags: (.*)$", entry, re.M)
    assert flags is not None
    assert "sf" in flags[1].split()

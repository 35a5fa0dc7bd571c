"""The lab itself: what it promises to those who run things in it."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.doctor import syscalls
from tests.lab import SERIES, LabError, Machine, kernels, run
from tests.lab.guest import BOOT_TIMEOUT, ROOT
from tests.lab.pmem import mounted_dax
from tests.lab.ports import Stream
from tests.support.waiting import until

MAP_SHARED_VALIDATE, MAP_SYNC = 0x03, 0x80000
BARE = Machine(pmem=())

MODULES = """
    xfs ext4 btrfs loop dm-mod dm-flakey nfit nd_pmem libnvdimm dax nfsd nfs blocklayoutdriver
    rdma_rxe ib_uverbs dummy target_core_user target_core_iblock tcm_loop scsi_debug overlay nbd
    virtio 9p fuse
"""

on_the_host = pytest.mark.usefixtures("lab")
pytestmark = pytest.mark.timeout(600)


@on_the_host
def test_a_command_gives_back_its_output_and_status(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host\n")
    script = """
        echo out; echo err >&2; pwd; cat $SEALSVC_LAB_SHARE/in; echo made >$SEALSVC_LAB_SHARE/out
        touch /etc/made-by-the-lab || exit 1
        (sleep 1000; echo late) &
        exit 7
    """
    done = run(["sh", "-c", script], share=tmp_path, machine=BARE)
    assert (done.status, done.stderr) == (7, "err\n")
    assert done.boot_seconds < BOOT_TIMEOUT
    assert done.stdout == f"out\n{ROOT}\nfrom the host\n"
    assert (tmp_path / "out").read_text() == "made\n"
    assert not Path("/etc/made-by-the-lab").exists(), "the guest wrote to the host"


@on_the_host
def test_nothing_of_a_large_output_is_lost() -> None:
    done = run(["seq", "1000000"], machine=BARE)
    assert done.stdout.split() == [str(n) for n in range(1, 1_000_001)]


@on_the_host
@pytest.mark.parametrize("command", ["sleep 60", "while :; do echo on and on; done"])
def test_a_command_that_takes_too_long_is_ended(command: str) -> None:
    with pytest.raises(LabError, match="longer than 1 s"):
        run(["sh", "-c", command], timeout=1.0, machine=BARE)


@on_the_host
def test_a_panic_is_told_with_the_end_of_the_console() -> None:
    crash = "echo 7 >/proc/sys/kernel/printk; echo c >/proc/sysrq-trigger"
    with pytest.raises(LabError, match=r"(?s)the guest died.*sysrq triggered crash"):
        run(["sh", "-c", crash], machine=BARE)


@on_the_host
def test_two_devices_of_persistent_memory() -> None:
    machine = Machine(pmem=(256 << 20, 512 << 20))
    done = run(["cat", "/sys/block/pmem0/size", "/sys/block/pmem1/size"], machine=machine)
    # Which of the two comes first is the firmware's choice.
    first, second = sorted(int(sectors) * 512 for sectors in done.stdout.split())
    assert 0 < first <= machine.pmem[0] < second <= machine.pmem[1]


@on_the_host
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_guest_ends_with_the_command_line(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "tests.lab", "--", "sh", "-c", "echo started; sleep 1000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        (directory,) = tmp_path.iterdir()
        process.send_signal(number)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    until(lambda: not _mentioned(str(directory)), what="the end of QEMU")
    assert directory.exists() == (number == signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)


def _mentioned(text: str) -> bool:
    """Whether a process has `text` in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def test_what_is_missing_is_the_reason_to_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_path", lambda: "/nonexistent")
    assert "qemu-system-x86_64" in str(kernels.unavailable.__wrapped__("0.0-none"))


def test_without_a_network_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kernels.missing_tools():
        pytest.skip("the lab's tools are not here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "_mirrors", lambda: [f"file:{tmp_path}/none"])
    with pytest.raises(kernels.Unavailable, match=r"serves no kernel 6\.18: "):
        kernels.kernel.__wrapped__("6.18")
    assert [path.name for path in (tmp_path / "sealsvc/lab").iterdir()] == ["lock"]


def test_a_stream_is_shown_without_its_mark() -> None:
    shown: list[bytes] = []
    stream = Stream(b"\1end", shown.append)
    for byte in b"a\1e\1end and more":
        stream.feed(bytes([byte]))
    assert b"".join(shown) == b"a\1e"
    assert (stream.whole, stream.text) == (True, "a\1e")


@pytest.mark.lab(kernel=SERIES)
def test_every_kernel_has_what_is_promised(lab_kernel: str) -> None:
    assert os.uname().release == os.environ["SEALSVC_LAB"]
    assert os.uname().release.startswith(f"{lab_kernel}.")
    assert os.geteuid() == 0
    assert Path("/dev/pmem0").is_block_device()
    assert "bpf" in Path("/sys/kernel/security/lsm").read_text()
    assert Path("/sys/kernel/btf/vmlinux").exists()
    subprocess.run(["modprobe", "--dry-run", "--all", *MODULES.split()], check=True)
    mounts = {line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert {"bpf", "securityfs", "debugfs", "tracefs", "cgroup2", "devpts", "configfs"} <= mounts


@pytest.mark.lab
@pytest.mark.parametrize(("fstype", "reflink"), [("xfs", False), ("xfs", True), ("ext4", False)])
def test_persistent_memory_is_mapped_synchronously(fstype: str, reflink: bool) -> None:
    with mounted_dax(fstype, reflink=reflink, pmd=reflink) as point:
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


def test_a_kernel_of_several_packages_is_put_together() -> None:
    """As Debian has packaged them until 6.18, and since; what lacks a part is not offered."""
    found = kernels._releases(
        [
            "linux-image-6.18.15+deb13-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-6.12.9-amd64-unsigned",
            "linux-binary-6.19.8+deb13-amd64",
            "linux-image-6.19.8+deb13-amd64",
            "linux-image-7.2.1+deb14-amd64",
            "linux-binary-7.2.1+deb14-amd64",
            "linux-binary-7.2.1+deb14-amd64-unsigned",
            "linux-modules-7.2.1+deb14-amd64",
        ]
    )
    assert found == {
        "6.18.15+deb13-amd64": ["linux-image-6.18.15+deb13-amd64"],
        "6.12.9-amd64": ["linux-image-6.12.9-amd64-unsigned"],
        "7.2.1+deb14-amd64": ["linux-binary-7.2.1+deb14-amd64", "linux-modules-7.2.1+deb14-amd64"],
    }

"""Block devices that keep protection information, and file systems on them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MiB = 1 << 20
PATIENCE = 300.0


def sh(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def _disks() -> set[str]:
    return {path.name for path in Path("/sys/block").iterdir()}


def _wait_for(found: list[str], before: set[str]) -> str:
    deadline = time.monotonic() + PATIENCE
    while not (new := _disks() - before):
        assert time.monotonic() < deadline, f"no disk appeared: {found}"
        time.sleep(0.05)
    return new.pop()


@contextmanager
def scsi_disk(dif: int = 1, *, dix: int = 1, guard: int = 0, sector: int = 512) -> Iterator[Path]:
    """A disk of scsi_debug with T10 DIF of that type; `guard` 1 is the IP checksum. With `dix` its
    host adapter takes PI from the kernel."""
    before = _disks()
    sh("modprobe", "sd_mod")
    sh(
        "modprobe", "scsi_debug", f"dif={dif}", f"dix={dix}", f"guard={guard}",
        f"sector_size={sector}", "dev_size_mb=64", "delay=0",
    )  # fmt: skip
    try:
        yield Path("/dev", _wait_for(["scsi_debug"], before))
    finally:
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(["rmmod", "scsi_debug"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "scsi_debug stays in use"
            time.sleep(0.1)


def nvme_disk(number: int) -> Path:
    """Namespace `number` of the machine's NVMe controller, from 1 on. The kernel looks at several
    at once, so that the numbers in the names of the devices are not those of the namespaces."""
    sh("modprobe", "nvme")
    deadline = time.monotonic() + PATIENCE
    while True:
        for found in Path("/sys/block").glob("nvme0n*/nsid"):
            path = Path("/dev", found.parent.name)
            if int(found.read_text()) == number and path.exists():
                return path
        assert time.monotonic() < deadline, f"namespace {number} does not appear"
        time.sleep(0.05)


@contextmanager
def mounted(device: Path, point: Path, fstype: str = "xfs") -> Iterator[Path]:
    if fstype == "xfs":  # smaller than mkfs.xfs would make it by itself
        sh("mkfs.xfs", "-q", "-f", "--unsupported", device)
    else:
        sh("mkfs.ext4", "-q", "-F", "-b", "4096", device)
    point.mkdir()
    sh("mount", "-t", fstype, device, point)
    try:
        yield point
    finally:
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(["umount", point], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"{point} stays in use"
            time.sleep(0.1)

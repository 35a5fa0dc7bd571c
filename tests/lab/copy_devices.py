"""Devices that copy by themselves, and devices that fail, below file systems of the lab."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import until

TARGET = Path("/sys/kernel/config/target")
# All that is written later is what a test writes: ext4 would initialise its tables by and by.
_NOT_LAZY = "lazy_itable_init=0,lazy_journal_init=0"
_MKFS = {"ext4": ("-F", "-b", "4096", "-E", _NOT_LAZY), "xfs": ("-f", "-m", "reflink=1")}


def sh(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


def formatted(device: object, kind: str) -> None:
    sh(f"mkfs.{kind}", "-q", *_MKFS[kind], device)


@contextmanager
def mounted(device: object, kind: str, point: Path, options: str = "defaults") -> Iterator[Path]:
    """The file system that is there. Whoever still has a file of it open may keep it a little."""
    sh("mount", "-t", kind, "-o", options, device, point)
    try:
        yield point
    finally:
        unmount = ["umount", str(point)]
        until(
            lambda: subprocess.run(unmount, capture_output=True, check=False).returncode == 0,
            what=f"the end of {point}",
        )


@contextmanager
def mounted_on(device: object, kind: str = "ext4") -> Iterator[Path]:
    """A new file system on `device`."""
    formatted(device, kind)
    with (
        tempfile.TemporaryDirectory(prefix="copies-") as directory,
        mounted(device, kind, Path(directory)) as point,
    ):
        yield point


@contextmanager
def loop_on(image: Path) -> Iterator[Path]:
    device = Path(sh("losetup", "--find", "--show", image).strip())
    try:
        yield device
    finally:
        sh("losetup", "--detach", device)


def nvme_device() -> Path:
    sh("modprobe", "nvme")
    device = Path("/dev/nvme0n1")
    until(device.exists, what="the namespace")
    return device


@contextmanager
def scsi_disk() -> Iterator[Path]:
    """A RAM disk of LIO's behind the loopback fabric."""
    for module in ("target_core_mod", "tcm_loop", "sd_mod", "sg"):
        sh("modprobe", module)
    core, port = TARGET / "core/rd_mcp_0/copies", TARGET / "loopback/naa.5001405000000001/tpgt_1"
    core.mkdir(parents=True)
    (core / "control").write_text("rd_pages=16384")  # 64 MiB
    (core / "wwn/vpd_unit_serial").write_text("5ea15ec0-0000-4000-8000-000000000001")
    (core / "enable").write_text("1")
    port.mkdir(parents=True)
    (port / "nexus").write_text("naa.5001405000000002")
    lun = port / "lun/lun_0"
    lun.mkdir()
    (lun / "storage").symlink_to(core)
    try:
        until(lambda: bool(list(Path("/sys/block").glob("sd*"))), what="the disk")
        name = next(Path("/sys/block").glob("sd*")).name
        until(Path(f"/dev/{name}").exists, what="its node")
        yield Path(f"/dev/{name}")
    finally:
        (lun / "storage").unlink()
        for directory in (lun, port, port.parent, core, core.parent):
            directory.rmdir()


class Failing:
    """A device-mapper device over `below` that fails when it is told to: `linear` is for DAX, and
    for what device copies follow; `flakey` for the rest (one that was for DAX cannot become it)."""

    def __init__(self, below: Path, healthy: str, name: str = "failing") -> None:
        self.name, self.path = name, Path("/dev/mapper") / name
        self._below, self._sectors = below, int(sh("blockdev", "--getsz", below))
        self._healthy = self._tables[healthy]

    @property
    def _tables(self) -> dict[str, str]:
        on = f"{self._below} 0"
        return {
            "linear": f"linear {on}",
            "flakey": f"flakey {on} 1000 0",
            "writes fail": f"flakey {on} 0 1000 1 error_writes",
            "reads fail": f"flakey {on} 0 1000 1 error_reads",
            "the device is gone": "error",
        }

    def create(self) -> None:
        sh("modprobe", "-a", "dm_mod", "dm_flakey")
        table = f"0 {self._sectors} {self._healthy}"
        sh("dmsetup", "create", "--noudevsync", self.name, "--table", table)
        sh("dmsetup", "mknodes")

    def remove(self) -> None:
        sh("dmsetup", "remove", "--noudevsync", "--retry", self.name)

    def fail(self, fault: str) -> None:
        self._becomes(self._tables[fault])

    def heal(self) -> None:
        self._becomes(self._healthy)

    def _becomes(self, table: str) -> None:
        """Nothing is written back first."""
        sh("dmsetup", "load", self.name, "--table", f"0 {self._sectors} {table}")
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", "--noudevsync", self.name)
        sh("dmsetup", "resume", "--noudevsync", self.name)

"""Copies by devices: NVMe Copy, SCSI EXTENDED COPY, persistent memory."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sealsvc.copies import Options, Result, make_plan, run
from tests.copies.conftest import opened, pattern
from tests.copies.stacks import filled
from tests.copies.test_lower import as_if_sealed
from tests.lab.pmem import mounted_dax
from tests.support.waiting import until

pytestmark = [
    pytest.mark.lab(nvme=("mssrl=128,mcl=512,msrc=3",), pmem=512),
    pytest.mark.timeout(600),
]

MiB = 1 << 20
TARGET = Path("/sys/kernel/config/target")


def sh(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
    return done.stdout


@contextmanager
def mounted_on(device: object, kind: str = "ext4") -> Iterator[Path]:
    """A new file system on `device`."""
    arguments = {"ext4": ["-F", "-b", "4096"], "xfs": ["-f"]}[kind]
    sh(f"mkfs.{kind}", "-q", *arguments, device)
    with tempfile.TemporaryDirectory(prefix="copies-") as directory:
        sh("mount", "-t", kind, device, directory)
        try:
            yield Path(directory)
        finally:
            sh("umount", directory)


def refreshed(place: Path, strategy: str) -> None:
    """A file copied over another that is there, with both in the page cache; offloaded but for
    edges that are not whole blocks. Nobody else is here, which stands for the seals."""
    data, old = pattern(2 * MiB + 300), pattern(3 * MiB, seed=2)
    a, b = filled(place / "a", data), filled(place / "b", old)
    assert b.read_bytes() == old
    result = copied(a, b, strategy, length=len(data))
    assert result.bytes_by_strategy == {strategy: 2 * MiB, "plain": 300}
    assert b.read_bytes() == data + old[len(data) :]
    sh("sync")
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert b.read_bytes() == data + old[len(data) :]
    within = copied(a, b, strategy, offset=4096, length=MiB, to=8192)
    assert within.bytes_by_strategy == {strategy: MiB}
    assert b.read_bytes()[8192 : 8192 + MiB] == data[4096 : 4096 + MiB]


def copied(a: Path, b: Path, strategy: str, **where: Any) -> Result:
    with opened(a, b) as ends:
        plan = make_plan(as_if_sealed(ends), Options(only=(strategy,), **where))
        assert strategy in plan.strategies, plan.refused
        result = run(plan)
    assert result.whole, result.error
    assert result.durable
    assert result.fell_back == []
    return result


def nvme_device() -> Path:
    sh("modprobe", "nvme")
    device = Path("/dev/nvme0n1")
    until(device.exists, what="the namespace")
    return device


def test_nvme_copy_within_a_namespace() -> None:
    """The controller takes 128 blocks in a range, four ranges and 512 blocks in a command."""
    with mounted_on(nvme_device()) as place:
        refreshed(place, "nvme")


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


def test_extended_copy_within_a_logical_unit() -> None:
    with scsi_disk() as device, mounted_on(device) as place:
        refreshed(place, "xcopy")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_between_files_on_persistent_memory(kind: str) -> None:
    with mounted_dax(kind) as place:
        data, old = pattern(2 * MiB + 300), pattern(3 * MiB, seed=2)
        a, b = filled(place / "a", data), filled(place / "b", old)
        result = copied(a, b, "dax")
        assert result.bytes_by_strategy == {"dax": 2 * MiB, "plain": 300}
        assert b.read_bytes() == data + old[len(data) :]

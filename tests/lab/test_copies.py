"""Copies by devices: NVMe Copy, SCSI EXTENDED COPY, persistent memory, and stacks of device-mapper
above the reference device."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.copies import Options, Result, make_plan, run
from sealsvc.copies.requests import StartCopy
from sealsvc.overview import JobInfo, JobState, ShowJob
from tests.copies.conftest import opened, pattern
from tests.copies.stacks import filled, same_bytes
from tests.copies.test_lower import as_if_sealed
from tests.lab.pmem import mounted_dax
from tests.service.conftest import RISKS, serving, until

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
    until(device.exists, 30, "the namespace")
    return device


def test_nvme_copy_within_a_namespace() -> None:
    """The controller takes 128 blocks in a range, four ranges and 512 blocks in a command."""
    with mounted_on(nvme_device()) as place:
        refreshed(place, "nvme")


def test_an_offload_under_the_seals_of_the_service() -> None:
    with (
        mounted_on(nvme_device()) as place,
        tempfile.TemporaryDirectory(prefix="copies-") as directory,
        serving(Path(directory), [place], RISKS) as socket,
        Client(socket) as client,
    ):
        a, b = filled(place / "a", pattern(MiB)), filled(place / "b", pattern(MiB, seed=2))
        fds = [os.open(a, os.O_RDONLY | os.O_CLOEXEC), os.open(b, os.O_RDWR | os.O_CLOEXEC)]
        job = client.call(StartCopy, fds, strategies=["nvme"]).result
        for fd in fds:
            os.close(fd)
        assert isinstance(job, JobInfo)
        until(lambda: client.call(ShowJob, job=job.id).result.state != JobState.RUNNING)
        done = client.call(ShowJob, job=job.id).result
        assert done.state is JobState.DONE, done.error
        assert done.result["sealed"], done.result["unsealed_why"]
        assert done.result["bytes_by_strategy"] == {"nvme": MiB}
        assert same_bytes(a, b)


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
        until(lambda: bool(list(Path("/sys/block").glob("sd*"))), 30, "the disk")
        name = next(Path("/sys/block").glob("sd*")).name
        until(Path(f"/dev/{name}").exists, 30, "its node")
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


@contextmanager
def mapped(name: str, table: str) -> Iterator[Path]:
    sh("dmsetup", "create", "--noudevsync", name, "--table", table)
    sh("dmsetup", "mknodes")
    try:
        yield Path("/dev/mapper", name)
    finally:
        sh("dmsetup", "remove", "--noudevsync", "--retry", name)


@contextmanager
def loops(lower: Path, count: int, size: int) -> Iterator[list[str]]:
    with ExitStack() as stack:
        found = []
        for number in range(count):
            image = lower / f"image{number}"
            with image.open("xb") as file:
                file.truncate(size)
            found.append(sh("losetup", "--find", "--show", image).strip())
            stack.callback(sh, "losetup", "--detach", found[-1])
        yield found


@pytest.mark.parametrize("stack", ["linear", "striped"])
def test_the_reference_device_sliced_and_diced(stack: str) -> None:
    """ext4 on dm over two loop devices, whose images lie on one XFS."""
    sh("modprobe", "loop")
    sh("modprobe", "dm-mod")
    with (
        mounted_dax("xfs", reflink=True, options="dax=never", device="/dev/pmem0") as lower,
        loops(lower, 2, 32 * MiB) as (one, two),
    ):
        half = 32 * MiB // 512
        table = {
            # The halves swapped, the first one beginning in the middle of the second device.
            "linear": f"0 {half // 2} linear {two} {half // 2}\n{half // 2} {half} linear {one} 0",
            "striped": f"0 {2 * half} striped 2 128 {one} 0 {two} 0",
        }[stack]
        with (
            mapped(f"diced-{stack}", table) as device,
            mounted_on(device) as place,
        ):
            refreshed(place, "lower")


@pytest.mark.parametrize("strategy", ["lower", "range", "plain"])
def test_a_device_that_fails_midway(strategy: str) -> None:
    """dm-flakey between the upper file system and its image drops every write, and says EIO: what
    is reported done is on the device, and where nothing is known, nothing is reported."""
    for module in ("loop", "dm-mod", "dm-flakey"):
        sh("modprobe", module)
    size = 64 * MiB // 512
    with (
        mounted_dax("xfs", reflink=True, options="dax=never", device="/dev/pmem0") as lower,
        loops(lower, 1, 64 * MiB) as (loop,),
        mapped("flakey", f"0 {size} linear {loop} 0") as device,
    ):
        new, old = pattern(4 * MiB), pattern(4 * MiB, seed=2)
        with mounted_on(device) as place:
            a, b = filled(place / "a", new), filled(place / "b", old)
            sh("sync")

            def fail(done: int, _all: int, _name: str) -> None:
                if done == MiB:
                    table = f"0 {size} flakey {loop} 0 0 3600 1 error_writes"
                    sh("dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", "flakey")
                    sh("dmsetup", "load", "flakey", "--table", table)
                    sh("dmsetup", "resume", "--noudevsync", "flakey")

            with opened(a, b) as ends:
                held = as_if_sealed(ends) if strategy == "lower" else ends
                plan = make_plan(held, Options(only=(strategy,), throttle=8 * MiB))
                result = run(plan, progress=fail)
            assert not result.whole
            assert not result.durable
            assert result.done == 0
            sh("dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", "flakey")
            sh("dmsetup", "load", "flakey", "--table", f"0 {size} linear {loop} 0")
            sh("dmsetup", "resume", "--noudevsync", "flakey")
        sh("mount", "-t", "ext4", device, "/mnt")
        found = Path("/mnt/b").read_bytes()
        assert Path("/mnt/a").read_bytes() == new
        sh("umount", "/mnt")
        sectors = range(0, len(found), 512)
        assert all(found[s : s + 512] in (old[s : s + 512], new[s : s + 512]) for s in sectors)

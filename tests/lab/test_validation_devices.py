"""Mapping validation without the service: other kernels, other devices above persistent memory."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealsvc.core.model import FileId, Requirements
from sealsvc.linux.host import MappingQuestion
from sealsvc.linux.host.mapped import has_dax, validate
from sealsvc.linux.host.pmem import Unknown, base_of, region_of
from tests.lab.dax_files import PAGE, SIZE, SYNCHRONOUS, WHOLE, MiB, ask, extents, make
from tests.lab.pmem import mounted_dax
from tests.service.mapping_holder import Holder, holder
from tests.support.refusals import refusal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@contextmanager
def mapped_alone(path: Path) -> Iterator[Holder]:
    with holder(path) as process:
        process.do(SYNCHRONOUS)
        yield process


def facts(process: Holder, path: Path, moved: int = 0, **required: bool) -> Any:
    """`moved`: bytes by which the recorded map is made to differ from what is mapped."""
    rows = extents(path)
    rows[:, 1] += np.uint64(moved)
    st = path.stat()
    with path.open("rb") as file:
        assert has_dax(file.fileno())
        return validate(
            MappingQuestion(
                file=FileId(st.st_dev, st.st_ino),
                range=WHOLE,
                anchor=file.fileno(),
                map=rows,
                pid=process.pid,
                address=None,
                require=Requirements(**required),
            )
        )


def test_a_region_lies_in_persistent_memory() -> None:
    found = region_of(os.stat("/dev/pmem0").st_rdev)
    assert found
    start, length = found
    table = Path("/proc/iomem").read_text()
    spans = re.findall(r"^ *([0-9a-f]+)-([0-9a-f]+) : Persistent Memory$", table, re.MULTILINE)
    assert any(int(a, 16) <= start and start + length <= int(b, 16) + 1 for a, b in spans), table
    assert length >= 900 * MiB
    assert region_of(os.stat("/dev/null").st_rdev) is None


@pytest.mark.parametrize("lab_kernel", ["6.12", "6.1"])
def test_other_kernels(lab_kernel: str) -> None:
    scans = lab_kernel != "6.1"
    with mounted_dax("ext4") as point:
        path = make(point / "file")
        with mapped_alone(path) as process:
            found = facts(process, path, map_sync=True, populate=True)
            assert found.method == ("pagemap-scan" if scans else "pagemap")
            assert found.pfn_checked == found.pages == SIZE // PAGE
            assert found.huge_pages == (4 if scans else 0)
            assert bool(found.notes) is not scans
            if scans:
                facts(process, path, pmd=True)
            else:
                refused = refusal(lambda: facts(process, path, pmd=True))
                assert refused.details["check"] == "huge"
                assert "6.7" in refused.details["found"]
            refused = refusal(lambda: facts(process, path, moved=PAGE))
            place = int(extents(path)[0, 1])
            assert refused.code == "mapping-invalid"
            assert refused.details["check"] == "pfn"
            assert refused.details["expected"] == f"device byte {place + PAGE}"
            assert refused.details["found"] == f"device byte {place}"
            rows = extents(path)
            rows[0, 1] += np.uint64(PAGE)
            base = base_of(path.stat().st_dev)
            failed = ask(process, path, map=rows, base=base).failed
            assert failed
            assert (failed.check, failed.offset) == ("pfn", 0)


def sh(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def linear(*targets: str) -> Iterator[str]:
    sh("modprobe", "dm_mod")
    sh("dmsetup", "create", "--noudevsync", "val", "--table", "\n".join(targets))
    sh("dmsetup", "mknodes")
    try:
        yield "/dev/mapper/val"
    finally:
        sh("dmsetup", "remove", "--noudevsync", "val")


@contextmanager
def partition() -> Iterator[str]:
    sh("addpart", "/dev/pmem0", "1", str(4 * MiB // 512), str(512 * MiB // 512))
    try:
        yield "/dev/pmem0p1"
    finally:
        sh("delpart", "/dev/pmem0", "1")


@contextmanager
def on(device: str, point: Path) -> Iterator[Path]:
    sh("mkfs.ext4", "-q", "-F", "-b", "4096", device)
    sh("mount", "-t", "ext4", "-o", "dax=always", device, str(point))
    try:
        yield point
    finally:
        sh("umount", str(point))


@pytest.mark.parametrize("below", ["linear", "partition"])
def test_devices_above_persistent_memory(below: str, tmp_path: Path) -> None:
    length = 512 * MiB // 512
    made = (
        linear(f"0 {length} linear /dev/pmem0 {8 * MiB // 512}")
        if below == "linear"
        else partition()
    )
    with made as device, on(device, tmp_path) as point:
        path = make(point / "file")
        with mapped_alone(path) as process:
            found = facts(process, path, map_sync=True, populate=True)
            assert (found.pfn_checked, found.notes) == (SIZE // PAGE, [])


def test_a_device_of_several_pieces_has_no_one_place(tmp_path: Path) -> None:
    half = 256 * MiB // 512
    targets = f"0 {half} linear /dev/pmem0 0", f"{half} {half} linear /dev/pmem0 {2 * half}"
    with linear(*targets) as device:
        with pytest.raises(Unknown, match="2 device-mapper targets"):
            base_of(os.stat(device).st_rdev)
        with on(device, tmp_path) as point:
            path = make(point / "file")
            with mapped_alone(path) as process:
                found = facts(process, path, map_sync=True, populate=True)
                assert found.pfn_checked == 0
                assert "2 device-mapper targets" in found.notes[0]


def test_a_file_without_dax_on_a_file_system_with_it() -> None:
    with mounted_dax("xfs", options="dax=inode") as point:
        path = make(point / "file")
        with path.open("rb") as file:
            assert not has_dax(file.fileno())

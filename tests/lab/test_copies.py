"""Copies by devices: NVMe Copy, SCSI EXTENDED COPY, persistent memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sealsvc.copies import Options, Result, make_plan, run
from tests.copies.conftest import opened, pattern
from tests.copies.stacks import filled
from tests.copies.test_lower import as_if_sealed
from tests.lab.copy_devices import mounted_on, nvme_device, scsi_disk, sh
from tests.lab.pmem import mounted_dax

pytestmark = [
    pytest.mark.lab(nvme=("mssrl=128,mcl=512,msrc=3",), pmem=512),
    pytest.mark.timeout(600),
]

MiB = 1 << 20


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


def test_nvme_copy_within_a_namespace() -> None:
    """The controller takes 128 blocks in a range, four ranges and 512 blocks in a command."""
    with mounted_on(nvme_device()) as place:
        refreshed(place, "nvme")


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

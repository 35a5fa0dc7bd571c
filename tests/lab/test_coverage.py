"""The doctor's whole catalogue in the lab: with bpf nothing is left uncovered, DAX or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from sealsvc.core.model import Conflict
from sealsvc.doctor.report import Report, measure
from tests.lab.pmem import mounted_dax

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(600)]

# Without DAX, tests/service/test_coverage.py shows what fanotify covers.
FILESYSTEMS = [
    pytest.param("xfs", "dax=always", id="xfs-dax"),
    pytest.param("xfs", "dax=never", id="xfs", marks=pytest.mark.long),
    pytest.param("ext4", "dax=always", id="ext4-dax", marks=pytest.mark.long),
    pytest.param("ext4", "dax=never", id="ext4", marks=pytest.mark.long),
]


def measured(
    fstype: str, options: str, enforcers: list[str], conflicts: Sequence[Conflict] = tuple(Conflict)
) -> Report:
    with mounted_dax(fstype, reflink=True, options=options) as root:
        report = measure(str(root), enforcers=enforcers, conflicts=conflicts)
    tally = Counter((row.kind, row.conflict, row.enforcer, row.result) for row in report.coverage)
    for (kind, conflict, enforcer, result), count in sorted(tally.items()):
        print(f"{kind:10}{conflict:8}{enforcer or '(grant)':16}{result:18}{count:4}")
    for row in report.coverage:
        if row.result in ("refused", "passed-harmless", "waits"):
            assert not row.map_changed, row
    return report


def uncovered(report: Report) -> list[tuple[str, str, str]]:
    return [
        (row.operation, str(row.kind), str(row.conflict))
        for row in report.coverage
        if row.result == "not-covered"
    ]


@pytest.mark.parametrize(("fstype", "options"), FILESYSTEMS)
def test_nothing_is_uncovered(fstype: str, options: str) -> None:
    report = measured(fstype, options, ["bpf", "fanotify"])
    assert report.enforcers == ["bpf", "fanotify"]
    assert len(report.coverage) > 400
    assert uncovered(report) == []
    combinations = {row.enforcer for row in report.coverage}
    assert {"bpf", "fanotify+bpf"} <= combinations


@pytest.mark.long
@pytest.mark.parametrize("lab_kernel", ["6.12", "6.1"])
@pytest.mark.parametrize(("fstype", "options"), FILESYSTEMS[::2])
def test_older_kernels_refuse_with_bpf(fstype: str, options: str, lab_kernel: str) -> None:
    """There are no pre-content events; what waits, waits with a lease (test_matrix.py)."""
    report = measured(fstype, options, ["bpf", "fanotify", "lease"], [Conflict.REFUSE])
    assert report.enforcers == ["bpf", "lease"]
    assert uncovered(report) == []


def test_the_mount_is_what_it_says() -> None:
    with mounted_dax("xfs", reflink=True, options="dax=never") as root:
        line = next(x for x in Path("/proc/mounts").read_text().splitlines() if str(root) in x)
    assert "dax=never" in line

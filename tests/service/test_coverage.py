"""The coverage matrix: the doctor's whole catalogue against the real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealsvc.doctor.report import measure
from tests.operations.table import load

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

# What raises no event is a named risk in the table of operations, or not judged yet.
NAMED = load().doctor_rows("risk", "open")
# An overlay that is mounted over the file after the grant.
EXCLUSIVE = {"truncate-into/overlay"}


@pytest.mark.timeout(300)
def test_only_what_is_named_is_not_covered(root: Path, tmp_path: Path) -> None:
    report = measure(str(root), enforcers=["fanotify"])
    assert len(report.coverage) > 400
    unseen: dict[str, set[str]] = {"shared": set(), "exclusive": set()}
    for row in report.coverage:
        if row.result == "not-covered":
            unseen[row.kind].add(row.operation.removesuffix("/early"))
        if row.result in ("refused", "passed-harmless"):
            assert not row.map_changed, row
    assert unseen["shared"] <= NAMED
    assert unseen["exclusive"] <= EXCLUSIVE
    assert [row for row in report.coverage if "did not go on" in row.note] == []
    results = {row.result for row in report.coverage}
    assert {"waits", "refused", "passed-harmless"} <= results

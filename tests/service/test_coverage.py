"""The coverage matrix: the doctor's whole catalogue against the real service."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealsvc.doctor.report import measure

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

# What raises no event: named in the README, and a risk that policy must accept for shared seals.
SHARED = {
    "xfs": {"xfs-swapext-target", "xfs-swapext-donor"},
    "ext4": {"ext4-move-ext-original", "ext4-move-ext-donor"},
}
EVERYWHERE = {"loop-discard", "truncate-into/overlay", "ftruncate-into/overlay"}
# An overlay that is mounted over the file after the grant.
EXCLUSIVE = {"truncate-into/overlay"}


@pytest.mark.timeout(300)
def test_only_what_is_named_is_not_covered(root: Path, tmp_path: Path) -> None:
    report = measure(str(root), enforcers=["fanotify"])
    assert len(report.coverage) > 400
    unseen: dict[str, set[str]] = {"shared": set(), "exclusive": set()}
    for row in report.coverage:
        if row.result == "not-covered":
            unseen[row.kind].add(row.operation)
        if row.result in ("refused", "passed-harmless"):
            assert not row.map_changed, row
    own = SHARED[report.filesystem if isinstance(report.filesystem, str) else "xfs"]
    early = {f"{name}/early" for name in own}
    assert unseen["shared"] <= own | early | EVERYWHERE
    assert unseen["exclusive"] <= EXCLUSIVE
    results = {row.result for row in report.coverage}
    assert {"waits", "refused", "passed-harmless"} <= results

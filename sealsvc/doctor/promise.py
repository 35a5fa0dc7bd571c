"""What rows of coverage mean for the promise (README.md, "What it promises")."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from sealsvc.core.model import Kind
from sealsvc.doctor.report import Row
from sealsvc.doctor.verdict import Result

# The gaps that are told of (policy.accept_risks): the operations that measure them, by beginnings
# of their names, and by their routes.
_GAPS = {
    "ext4-move-ext": ("ext4-move-ext", "e4defrag"),
    "ext4-swap-boot": ("ext4-swap-boot",),
    "ext4-inode-flags": ("chattr",),
    "xfs-swapext": ("xfs-swapext", "xfs-fsr"),
    "loop-device": ("loop-",),
}
_OVERLAY = "overlay-truncate"
_OVERLAY_ROUTES = ("/overlay",)  # mounted after the grant; what was there before is refused


class Verdict(StrEnum):
    """holds: nothing that was measured gets past a seal. holds-with-gaps: only what shared seals
    need accepted risks for, or what exclusive ones are open to, too. broken: something else does.
    """

    HOLDS = "holds"
    GAPS = "holds-with-gaps"
    BROKEN = "broken"


class Judged(NamedTuple):
    verdict: Verdict
    text: str


def risk_of(row: Row) -> str:
    """The told gap by which a row that is not covered is explained; "" without one. With bpf behind
    it, a seal has none of these gaps."""
    if "bpf" in row.enforcer.split("+"):
        return ""
    if any(row.operation.endswith(route) for route in _OVERLAY_ROUTES):
        return _OVERLAY
    if row.kind is not Kind.SHARED:
        return ""
    return next((risk for risk, names in _GAPS.items() if row.operation.startswith(names)), "")


def judged(rows: Iterable[Row]) -> Judged:
    """The verdict on all rows, and a line that says why."""
    measured = [row for row in rows if row.result is not Result.NOT_APPLICABLE]
    open_rows = [row for row in measured if row.result is Result.NOT_COVERED]
    broken = [row for row in open_rows if not risk_of(row)]
    if broken:
        names = ", ".join(sorted({f"{row.operation} ({row.kind})" for row in broken}))
        return Judged(Verdict.BROKEN, f"the promise does not hold here against {names}")
    if open_rows:
        risks = ", ".join(sorted({risk_of(row) for row in open_rows}))
        text = f"the promise holds here, but for known gaps: {risks}"
        return Judged(Verdict.GAPS, text)
    if not measured:
        return Judged(Verdict.BROKEN, "nothing could be measured here")
    return Judged(Verdict.HOLDS, f"the promise holds here: {len(measured)} operations tried")

"""Running a list of operations again, and leaving out of it what does not matter."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.model.operations import Operation
from tests.model.run import Run
from tests.model.system import Difference, System
from tests.promise.replay import minimal

PATIENCE = 120.0  # seconds


def replay(system: System, reflink: bool, operations: Sequence[Operation]) -> str:
    """On new files; what differs, or nothing."""
    try:
        Run(system, reflink).run(operations)
    except Difference as difference:
        return str(difference)
    return ""


def shrink(
    system: System, reflink: bool, operations: list[Operation], what: str
) -> tuple[list[Operation], str]:
    """Fewer operations that differ still (delta debugging), and how. What does not happen again is
    left as it is."""
    deadline = time.monotonic() + PATIENCE
    if not replay(system, reflink, operations):
        return operations, f"{what} (it did not happen again)"
    numbered = {f"{n}": operation for n, operation in enumerate(operations)}

    def differs(keys: Sequence[str]) -> bool:
        return bool(replay(system, reflink, [numbered[key] for key in keys]))

    left = [numbered[key] for key in minimal(list(numbered), differs, deadline)]
    return left, replay(system, reflink, left) or what

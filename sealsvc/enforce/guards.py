"""Guards as the native code has them: struct seal_guard (native/include/sealsvc/verdict.h)."""

from __future__ import annotations

from sealsvc.enforce import Guard, Verdict
from sealsvc.native import lib

POLICIES = {
    Verdict.ARMING: lib.SEAL_POLICY_ARMING,
    Verdict.WAIT: lib.SEAL_POLICY_WAIT,
    Verdict.REFUSE: lib.SEAL_POLICY_REFUSE,
    Verdict.BUSY: lib.SEAL_POLICY_BUSY,
    Verdict.WATCH: lib.SEAL_POLICY_WATCH,
}


def fields(guard: Guard) -> dict[str, int]:
    return {
        "id": guard.token,
        "start": guard.range.offset,
        "end": guard.range.end,
        "holder": guard.holder,
        "exclusive": int(guard.exclusive),
        "policy": POLICIES[guard.verdict],
        "watch": guard.watch,
    }

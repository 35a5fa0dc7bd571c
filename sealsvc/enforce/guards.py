"""Guards as the native code has them: struct seal_guard (native/include/sealsvc/verdict.h)."""

from __future__ import annotations

from sealsvc.core import rules
from sealsvc.core.model import Operation
from sealsvc.core.rules import Policy, Trait
from sealsvc.enforce.base import Guard, Verdict
from sealsvc.linux.filesystem import Filesystem

POLICIES = {
    Verdict.ARMING: Policy.ARMING,
    Verdict.WAIT: Policy.WAIT,
    Verdict.REFUSE: Policy.REFUSE,
    Verdict.BUSY: Policy.BUSY,
    Verdict.WATCH: Policy.WATCH,
}


def fields(guard: Guard) -> dict[str, int]:
    return {
        "id": guard.token,
        "start": guard.range.offset,
        "end": guard.range.end,
        "holder": guard.holder,
        "exclusive": int(guard.exclusive),
        "policy": POLICIES[guard.verdict],
        # Behind a registration bpf leaves truncation to it.
        "backed": int(guard.backed and guard.verdict is not Verdict.WATCH),
        "watch": guard.watch,
    }


def is_holder(guard: Guard, operation: Operation) -> bool:
    return bool(guard.holder) and guard.holder == operation.pid


def meets(guard: Guard, operation: Operation, filesystem: Filesystem) -> bool:
    """Does the operation conflict with the guard? Of an operation that was held or refused because
    it may be an atomic write, the gate has found that the file system has these."""
    traits = Trait.ATOMIC
    traits |= Trait.REFLINK if filesystem.reflink else Trait(0)
    traits |= Trait.EXCLUSIVE if guard.exclusive else Trait(0)
    traits |= Trait.HOLDER if is_holder(guard, operation) else Trait(0)
    traits |= Trait.BACKED if fields(guard)["backed"] else Trait(0)
    return rules.conflicts(
        rules.of(operation.name),
        operation.offset,
        operation.length,
        guard.range.offset,
        guard.range.end,
        traits,
    )

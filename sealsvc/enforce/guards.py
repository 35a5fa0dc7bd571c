"""Conversion of guards to struct seal_guard (native/include/sealsvc/verdict.h), and the check of
one against an operation."""

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
    """The fields of struct seal_guard. `end` is exclusive, in bytes."""
    return {
        "id": guard.token,
        "start": guard.range.offset,
        "end": guard.range.end,
        "holder": guard.holder,
        "exclusive": int(guard.exclusive),
        "policy": POLICIES[guard.verdict],
        # Behind a registration, bpf leaves truncation to the enforcer in front.
        "backed": int(guard.backed and guard.verdict is not Verdict.WATCH),
        "watch": guard.watch,
    }


def is_holder(guard: Guard, operation: Operation) -> bool:
    """Whether the guard's holder makes the operation."""
    return bool(guard.holder) and guard.holder == operation.pid


def meets(guard: Guard, operation: Operation, filesystem: Filesystem) -> bool:
    """Whether the operation conflicts with the guard. Atomic writes are taken to be supported: if
    the gate holds or refuses one, it has found that the file system has them."""
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

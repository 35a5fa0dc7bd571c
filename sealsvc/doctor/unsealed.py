"""What an operation does to an unsealed file: tells "unsupported" from "refused"."""

from __future__ import annotations

from contextlib import ExitStack

import msgspec

from sealsvc.core.model import ByteRange
from sealsvc.doctor import maps
from sealsvc.doctor.actor import Outcome, Subject
from sealsvc.doctor.bench import Bench, Specimen, established
from sealsvc.doctor.operations import Operation
from sealsvc.doctor.scene import LENGTH, START

SEALED = ByteRange(START, LENGTH)
_END_WITHIN = 60.0  # seconds: nothing waits for anything here


class UnsealedRun(msgspec.Struct, frozen=True, kw_only=True):
    """`changed`: the map of the range that is sealed elsewhere."""

    ended: bool
    failed: bool
    errno: int | None
    changed: bool
    detail: str

    def why_not(self, expected_change: bool) -> str:
        """Why measuring it on a sealed file would say nothing; empty when it would."""
        if not self.ended:
            return "did not end on an unsealed file"
        if self.failed and not self.changed:  # cp truncates first, and then finds it cannot clone
            return f"on an unsealed file: {self.detail}"
        if expected_change and not self.changed:
            return "had no effect on an unsealed file"
        return ""


class Unsealed:
    """The twins of one mounted file system. Each operation is tried once: without a grant there
    is no difference between what comes before it and what comes after."""

    def __init__(self) -> None:
        self._twins = dict[str, UnsealedRun]()

    def twin(self, bench: Bench, subject: Subject, operation: Operation) -> UnsealedRun:
        name = operation.name.removesuffix("/early").removesuffix("-early")
        if name not in self._twins:
            self._twins[name] = run_unsealed(bench, subject, operation)
        return self._twins[name]


def run_unsealed(bench: Bench, subject: Subject, operation: Operation) -> UnsealedRun:
    with bench.specimen(operation) as specimen, ExitStack() as stack:
        before = maps.take(specimen.fd)
        try:
            stack.enter_context(established(specimen, operation.route))
            outcome = _play_through(subject, operation, specimen)
        except OSError as error:  # the route: no overlay, for instance
            return UnsealedRun(
                ended=True, failed=True, errno=error.errno, changed=False, detail=str(error)
            )
        changed = not maps.same(before, maps.take(specimen.fd), SEALED)
    if outcome is None:
        return UnsealedRun(ended=False, failed=False, errno=None, changed=changed, detail="")
    return UnsealedRun(
        ended=True,
        failed=outcome.failed,
        errno=outcome.errno,
        changed=changed,
        detail=outcome.detail,
    )


def _play_through(subject: Subject, operation: Operation, specimen: Specimen) -> Outcome | None:
    with subject.play(operation, specimen.scene) as actor:
        failed = actor.prepare()
        if failed:
            return failed
        actor.go()
        return actor.outcome(_END_WITHIN)

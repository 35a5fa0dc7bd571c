"""One copy as a job: under seals where an offload is worth it, and without them where not."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import msgspec

from sealsvc.copies.ends import Ends
from sealsvc.copies.measured import Measured
from sealsvc.copies.plan import Options, Plan, make_plan
from sealsvc.copies.result import Result, parse_token
from sealsvc.copies.run import Progress, run
from sealsvc.copies.sealing import reopened, sealed
from sealsvc.copies.tasks import Task
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange

_SHOWN = 200  # rows in one message
_NEEDS_SEALS = {"lower", "nvme", "xcopy", "dax"}


def copy(
    ends: Ends, task: Task, measured: Measured, progress: Progress, cancel: threading.Event
) -> dict[str, Any]:
    """Raises Refusal, OSError for what keeps it from beginning; the rest is in the result."""
    options = options_of(task, ends)
    unsealed = why_unsealed(ends, task, options, measured)
    parts: list[Result] = []
    if not unsealed:
        recalled = _Either(cancel)
        ends = reopened(ends)
        try:
            with sealed(task.socket, ends, recalled) as pinned:
                parts.append(
                    run(make_plan(pinned, options, measured), measured, progress, recalled)
                )
        except Refusal as refusal:
            unsealed = str(refusal)
        else:
            if parts[0].cancelled and not cancel.is_set():
                unsealed = "a seal was recalled during the copy"
    if not parts or (parts[0].cancelled and not cancel.is_set()):
        ends = ends.again()
        if parts:
            done = parse_token(parts[0].token).done
            options = replace(options, done=done)
        parts.append(run(make_plan(ends, options, measured), measured, progress, cancel))
    return told(parts, unsealed)


class _Either(threading.Event):
    """Set by a recall, or by the one who cancels the copy."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()


def options_of(task: Task, ends: Ends) -> Options:
    to = task.offset if task.to is None else task.to
    done: tuple[ByteRange, ...] = ()
    if task.resume:
        done = parse_token(task.resume).ranges(ends, to - task.offset)
    names = ("offset", "length", "whole", "throttle", "durable", "verify", "in_place", "only")
    return Options(to=to, done=done, **{name: getattr(task, name) for name in names})


def why_unsealed(ends: Ends, task: Task, options: Options, measured: Measured) -> str:
    """Why no seals are taken; empty where an offload is predicted that needs them."""
    if not task.seals:
        return "not asked for"
    if held := (*ends.source.seals, *ends.destination.seals):
        return f"others hold seals ({', '.join(held[:3])})"
    plan = make_plan(ends, options, measured)
    first = _predicted(plan)
    plan.close()
    if first <= {"clone", "zero"}:
        return "the blocks are shared: nothing is offloaded"
    plan = make_plan(_assumed(ends), options, measured)
    first = _predicted(plan)
    why = {name: plan.refused[name] for name in _NEEDS_SEALS if name in plan.refused}
    plan.close()
    if first & _NEEDS_SEALS:
        return task.unsealable
    if len(why) == len(_NEEDS_SEALS):
        return "no offload is possible: " + "; ".join(f"{n}: {r}" for n, r in sorted(why.items()))
    return "no offload fits, or another strategy is faster here"


def _assumed(ends: Ends) -> Ends:
    """As if both were sealed: to see what that would be worth."""
    return Ends(replace(ends.source, pinned=True), replace(ends.destination, pinned=True))


def _predicted(plan: Plan) -> set[str]:
    return {piece.strategies[0] for piece in plan.pieces}


def predicted(ends: Ends, task: Task, measured: Measured) -> dict[str, Any]:
    """The plan, for people. Nothing is sealed for it, so that maps may change until the copy."""
    options = options_of(task, ends)
    unsealed = why_unsealed(ends, task, options, measured)
    plan = make_plan(ends if unsealed else _assumed(ends), options, measured)
    plan.close()
    pieces = [
        {
            "source": piece.span.source,
            "destination": piece.span.destination,
            "length": piece.span.length,
            "hole": piece.hole,
            "strategy": piece.strategies[0],
            "measured_here": piece.probe,
            "then": list(piece.strategies[1:]),
            "not_taken": piece.not_taken,
        }
        for piece in plan.pieces[:_SHOWN]
    ]
    return {
        "plan": pieces,
        "more": max(0, len(plan.pieces) - _SHOWN),
        "bytes": plan.span.length,
        "not_used": plan.refused,
        "sealed": not unsealed,
        "unsealed_why": unsealed,
    }


def told(parts: list[Result], unsealed: str) -> dict[str, Any]:
    """The result as JSON. A copy of which the second part went on without seals is one copy."""
    last = parts[-1]
    rows = [row for part in parts for row in part.rows]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.strategy] = counts.get(row.strategy, 0) + row.length
    fell_back = [fall for part in parts for fall in part.fell_back]
    whole: dict[str, Any] = msgspec.to_builtins(last)
    return whole | {
        "whole": last.whole,
        "rows": msgspec.to_builtins(rows[:_SHOWN]),
        "more_rows": max(0, len(rows) - _SHOWN),
        "bytes_by_strategy": counts,
        "fell_back": msgspec.to_builtins(fell_back[:_SHOWN]),
        "source_changed": any(part.source_changed for part in parts),
        "seconds": sum(part.seconds for part in parts),
        "sealed": len(parts) > 1 or not unsealed,
        "unsealed_why": unsealed,
    }

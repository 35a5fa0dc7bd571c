"""Fault points, at which a test can kill, delay or fail the service. Without the environment
variable SEALSVC_FAULTS they do nothing.

The variable is a comma-separated list of `NAME=kill`, `NAME=sleep:SECONDS` and `NAME=errno:EIO`;
with `@N` at its end, one acts only the N-th time. A point on the event loop that sleeps blocks the
whole loop.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

POINTS = (
    # A grant, in its order
    "grant:opened",
    "grant:admitted",
    "grant:prepared",
    "grant:held",
    "grant:settled",
    "grant:map-read",
    "grant:marked",
    "grant:steadied",
    "grant:recording",
    "grant:journalled",
    "grant:published",
    "grant:answered",
    # Any other step (states.Step); the points STEP:journalled are for steps that have actions
    "step:recording",
    # A recall
    "recall:started",
    "recall:journalled",
    "recall:told",
    "recallseals:answered",
    # A return, of a part or of the whole seal
    "shrink:resized",
    "shrink:journalled",
    "return:proven",
    "return:journalled",
    "return:answered",
    # Every end
    "end:removed",
    "end:released",
    # A fence
    "fence:due",
    "fence:journalled",
    "fence:signalled",
    "escalate:journalled",
    "fence:killed",
    "fence:exited",
    "fence:proven",
    "proven:journalled",
    "unproven:journalled",
    # Tags: an attachment that is built, tags that are written (in a thread)
    "integrity:built",
    "integrity:marked",
    "integrity:tagged",
    # Tags that are copied with a file, in order
    "integrity:travel-marked",
    "integrity:travel-copied",
    "integrity:travelled",
    # A relocation, in its order
    "relocate:recorded",
    "relocate:copied",
    "relocate:quiet",
    "relocate:swapping",
    "relocate:swapped",
    "relocate:remapped",
    # The end of a holder
    "holder-exit:journalled",
    # The next service's start
    "start:taken-over",
    "start:journalled",
    "start:enforced",
    "start:resumed",
    "reclaim:answered",
)


def point(name: str) -> None:
    """Act if SEALSVC_FAULTS names this point. Placed after the step that `name` names. May raise
    OSError."""
    if not _armed or name not in _armed:
        return
    act, wanted, times = _armed[name]
    if wanted in (0, next(times)):
        act()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _action(name: str, text: str) -> Callable[[], None]:
    kind, _, argument = text.partition(":")
    match kind:
        case "kill":
            return _kill
        case "sleep":
            seconds = float(argument)
            return lambda: time.sleep(seconds)
        case "errno":
            number = getattr(errno, argument)

            def fail() -> None:
                raise OSError(number, os.strerror(number), name)

            return fail
    raise ValueError(f"SEALSVC_FAULTS: {name}: {text!r} is nothing that can be done")


def parse(text: str) -> dict[str, tuple[Callable[[], None], int, Iterator[int]]]:
    """Parse SEALSVC_FAULTS. By point: the action, the number of the time at which it acts (0: each
    time), and a counter from 1. Raises ValueError, and AttributeError for an unknown errno."""
    found: dict[str, tuple[Callable[[], None], int, Iterator[int]]] = {}
    for item in filter(None, text.split(",")):
        name, _, rest = item.partition("=")
        if name not in POINTS:
            raise ValueError(f"SEALSVC_FAULTS: there is no point {name!r}")
        action, _, which = rest.partition("@")
        found[name] = (_action(name, action), int(which or 0), itertools.count(1))
    return found


_armed = parse(os.environ.get("SEALSVC_FAULTS", ""))

"""Points at which a test makes the service die, dawdle or fail: nothing without SEALSVC_FAULTS.

That names some, with commas between: `NAME=kill`, `NAME=sleep:SECONDS`, `NAME=errno:EIO`; each may
end in `@N`: only the N-th time. A point on the event loop stops all of it while it sleeps.
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
    # Any other step (states.Step); STEP:journalled are those of them that leave something to do
    "step:recording",
    # A recall
    "recall:started",
    "recall:journalled",
    "recall:told",
    "recallseals:answered",
    # A return, of a part or of all
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
    # Tags: an attachment that is built, and tags that are written (in a thread)
    "integrity:built",
    "integrity:marked",
    "integrity:tagged",
    # Tags that travel with a copy, in their order
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
    "start:resumed",
    "reclaim:answered",
)


def point(name: str) -> None:
    """The step that `name` says is done."""
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
    """By name: what is done, at which time (0: each time), and the times counted from 1."""
    found: dict[str, tuple[Callable[[], None], int, Iterator[int]]] = {}
    for item in filter(None, text.split(",")):
        name, _, rest = item.partition("=")
        if name not in POINTS:
            raise ValueError(f"SEALSVC_FAULTS: there is no point {name!r}")
        action, _, which = rest.partition("@")
        found[name] = (_action(name, action), int(which or 0), itertools.count(1))
    return found


_armed = parse(os.environ.get("SEALSVC_FAULTS", ""))

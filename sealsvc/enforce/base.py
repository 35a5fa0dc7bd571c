"""The interface of an enforcer, and what passes through it: guards, holds, reports.

 An enforcer says what it cannot see (`gaps`), what it cannot do at all
(`unable`), and which gaps of another it closes when it stands behind it (`closes`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, Kind, Operation
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.protocol.seals import Grant
from sealsvc.protocol.system import Gap


class Verdict(StrEnum):
    """What a conflicting operation meets."""

    ARMING = "arming"  # held, and nobody is told: a grant is being made
    WAIT = "wait"  # held and reported
    REFUSE = "refuse"  # ETXTBSY
    BUSY = "busy"  # EBUSY: a recall's deadline has passed
    WATCH = "watch"  # a registration: the seals in it decide (native/ring)


@dataclass(frozen=True, slots=True)
class Guard:
    """One sealed range, as an enforcer sees it. `behind` names the enforcer that stands in front of
    this one and makes conflicts wait: what that one sees is left to it. `watch` names the
    registration that is asked under Verdict.WATCH. `backed`: one that stands behind this one judges
    each truncation by the inode, so that an open whose flags are not known may pass here."""

    token: int
    range: ByteRange
    holder: int
    exclusive: bool
    verdict: Verdict
    behind: str = ""
    watch: int = 0
    backed: bool = False


# Seconds that reports may take of one turn of the event loop: whoever makes them as fast as it can
# leaves time to the others.
DRAIN_TIME = 0.002


class Outcome(StrEnum):
    HELD = "held"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Report:
    """A conflict. `waiter` names a held operation until its ENDED report; `error` is the errno it
    got (0: it went on; EINTR: its caller was killed). `tokens` are the guards it met."""

    outcome: Outcome
    waiter: int
    file: FileId
    operation: Operation
    tokens: tuple[int, ...]
    error: int = 0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """What a service that died had in force for one seal. `first` names the enforcer in front."""

    file: FileId
    filesystem: Filesystem
    first: str
    guard: Guard


class Hold(Protocol):
    """A guard in force on one file. `anchor` is a descriptor of the file that the enforcer owns, or
    -1: of a description of its own when it is `apart`, else of the holder's."""

    @property
    def anchor(self) -> int: ...

    @property
    def apart(self) -> bool: ...

    def change(self, verdict: Verdict) -> None: ...

    def resize(self, range: ByteRange) -> None:
        """Guard this part of the range alone."""
        ...

    def release(self) -> None:
        """Idempotent. Lets go on whatever no other guard holds."""
        ...


class Enforcer(Protocol):
    name: str
    late: bool  # its holds come last: with one in force, looking at the file may block

    def probe(self) -> str:
        """Why the enforcer cannot be used on this kernel; empty when it can."""
        ...

    def unable(self, filesystem: Filesystem, request: Grant) -> str:
        """Why it cannot keep such a seal; empty when it can."""
        ...

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]: ...

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:
        """The risks of other enforcers that are none when this one stands behind them."""
        ...

    def start(self, deliver: Callable[[Report], None]) -> int:
        """Begin; `deliver` is called from `drain`. Returns the descriptor to poll for reading."""
        ...

    def drain(self) -> None:
        """Deliver reports that wait, for DRAIN_TIME or so; the descriptor stays readable while
        there are more. Does not block."""
        ...

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Watch a file system from now on, so that later descriptors are seen."""
        ...

    def hold(self, target: Target, guard: Guard) -> Hold:
        """Put `guard` in force and prove that nobody can get around it: raises Refusal
        (file-in-use, try-later) and leaves nothing armed when that cannot be proven."""
        ...

    def reclaim(self, claims: list[Claim], kept: dict[str, int]) -> dict[int, Hold]:
        """Take over what a dead service left: the hold of each claim, by its token, where it is
        still in force. Everything of no claim is let go. `kept` are descriptors by name, which the
        caller closes: duplicate what is to stay."""
        ...

    def replay(self) -> None:
        """Report what is held once more, now that its seals are known."""
        ...

    def verify(self) -> str:
        """Try whether it still enforces. Why it does not; empty when it does. Called about every
        second, in a thread."""
        ...

    def lapses(self) -> int:
        """How often it may have let something through unjudged. It should stay 0."""
        ...

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Drop what is kept only to make the next seal cheaper."""
        ...

    def stop(self) -> None: ...


@runtime_checkable
class Watchable(Protocol):
    """A hold that can leave its range to a registration to judge."""

    def watch(self, key: int) -> None:
        """From the next Verdict.WATCH on."""
        ...

    def drain(self) -> None:
        """Wait until nothing that was let through can still change the map; raises try-later."""
        ...

    def adopt(self, guard: Guard) -> None:
        """Name it in reports from now on; the registration keeps it."""
        ...

    def disown(self, token: int) -> None: ...


class Holds:
    """One guard in force with several enforcers; the first makes conflicts wait."""

    def __init__(self, holds: list[Hold]) -> None:
        self.holds = holds
        self.released = False

    @contextmanager
    def given_up_after(self, seconds: float) -> Iterator[None]:
        """For calls that a hold may block for ever: it is released when they take longer."""
        timer = threading.Timer(seconds, self.release)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
        if self.released:
            raise Refusal(
                "try-later", "somebody waited on the pin that was being made", retry_after=0.1
            )

    @property
    def anchor(self) -> int:
        return self._anchored.anchor if self._anchored else -1

    @property
    def apart(self) -> bool:
        return self._anchored is not None and self._anchored.apart

    @property
    def _anchored(self) -> Hold | None:
        """The hold whose anchor is used: if possible one that is apart."""
        anchored = [hold for hold in self.holds if hold.anchor >= 0]
        return next((hold for hold in anchored if hold.apart), anchored[0] if anchored else None)

    @property
    def front(self) -> Hold:
        return self.holds[0]

    def change(self, verdict: Verdict) -> None:
        for hold in self.holds:
            hold.change(verdict)

    def resize(self, range: ByteRange) -> None:
        for hold in self.holds:
            hold.resize(range)

    def release(self) -> None:
        """From the last to the first: whoever waits with the first meets no refusal behind it."""
        self.released = True
        for hold in reversed(self.holds):
            hold.release()


def watchable(hold: Hold) -> Watchable | None:
    """What of a seal's hold can leave the judging to a registration."""
    front = hold.front if isinstance(hold, Holds) else None
    return front if isinstance(front, Watchable) else None

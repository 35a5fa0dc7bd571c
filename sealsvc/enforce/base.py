"""The interface of an enforcer, and the types it uses: guards, holds, reports.

An enforcer says which seals it cannot keep (`unable`), what it cannot see (`gaps`), and which gaps
of another enforcer it closes when it stands behind that one (`closes`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, Gap, Kind, Operation, SealTerms
from sealsvc.enforce.trips import Trip
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target


class Verdict(StrEnum):
    """What happens to a conflicting operation."""

    ARMING = "arming"  # held and not reported: a grant is being made
    WAIT = "wait"  # held and reported
    REFUSE = "refuse"  # ETXTBSY
    BUSY = "busy"  # EBUSY: a recall's deadline has passed
    WATCH = "watch"  # a registration: the seals in it decide (native/ring)


@dataclass(frozen=True, slots=True)
class Guard:
    """One sealed range, as an enforcer sees it. `token` is the seal's, `holder` the pid that is let
    through. `behind` names the enforcer that stands in front of this one (empty: none) and makes
    conflicts wait; this one leaves to it what it sees. `watch` is the key of the registration that
    decides under Verdict.WATCH. `backed`: an enforcer behind this one judges each truncation by the
    inode, so that this one may let an open pass whose flags are not known."""

    token: int
    range: ByteRange
    holder: int
    exclusive: bool
    verdict: Verdict
    behind: str = ""
    watch: int = 0
    backed: bool = False


# Seconds that one drain() may take of a turn of the event loop, so that a process that causes
# reports as fast as it can does not keep the service from other work.
DRAIN_TIME = 0.0002


class Outcome(StrEnum):
    """What a report says: an operation is held, was refused, or has ended its wait."""

    HELD = "held"
    REFUSED = "refused"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Report:
    """A conflict. `waiter` identifies a held operation until its ENDED report. `tokens` are the
    guards that it met. `error` is the errno that it got (0: it continued; EINTR: its caller was
    killed), `waited` the seconds for which it was held."""

    outcome: Outcome
    waiter: int
    file: FileId
    operation: Operation
    tokens: tuple[int, ...]
    error: int = 0
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class RecoveredGuard:
    """The guard that the previous service had in force for one seal. `first` names the enforcer in
    front."""

    file: FileId
    filesystem: Filesystem
    first: str
    guard: Guard


def _unexpected(report: object) -> None:
    raise RuntimeError(f"nobody was named who takes this report: {report}")


@dataclass(frozen=True, slots=True)
class Listener:
    """Who takes what an enforcer reports, on the event loop. `conflict` takes conflicts, `tripped`
    what the tripwire programs report (trips.py). The others take what the keeper reports besides:
    `ring` a struct seal_ring_report; `unverified` a struct seal_report of an operation that waits
    for a proof; `touched` one of an operation that was let through. Each struct is valid during the
    call only."""

    conflict: Callable[[Report], None] = _unexpected
    tripped: Callable[[Trip], None] = _unexpected
    ring: Callable[[Any], None] = _unexpected
    unverified: Callable[[Any], None] = _unexpected
    touched: Callable[[Any], None] = _unexpected


class Hold(Protocol):
    """A guard in force on one file. `anchor` is a descriptor of the file that the enforcer owns, or
    -1. If `apart` is true, it has an open file description of its own, else it shares the
    holder's."""

    @property
    def anchor(self) -> int: ...

    @property
    def apart(self) -> bool: ...

    def change(self, verdict: Verdict) -> None:
        """Change what conflicting operations meet. Raises Refusal when that fails."""
        ...

    def resize(self, range: ByteRange) -> None:
        """Reduce the guard to this part of its range. Raises Refusal when that fails."""
        ...

    def release(self) -> None:
        """Remove the guard: held operations that no other guard holds continue. Idempotent."""
        ...


class Enforcer(Protocol):
    """A kernel mechanism that makes conflicting operations wait or fail."""

    name: str
    late: bool  # its holds are made last: while one is in force, using the file may block

    def probe(self) -> str:
        """Why the enforcer cannot be used on this kernel; empty when it can."""
        ...

    def unable(self, filesystem: Filesystem, terms: SealTerms) -> str:
        """Why the enforcer cannot keep such a seal; empty when it can."""
        ...

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        """What the enforcer does not see on this file system, for seals of this kind."""
        ...

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:
        """The risks that a combination does not have when this enforcer stands behind another."""
        ...

    def start(self, listener: Listener) -> int:
        """Start reporting. `drain` calls `listener`. Returns the descriptor to poll for reading."""
        ...

    def drain(self) -> None:
        """Deliver pending reports, for about DRAIN_TIME; the descriptor stays readable while there
        are more. Does not block. Raises Refusal when the keeper is gone."""
        ...

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Watch the file system of `fd` from now on, so that descriptors opened later are seen.
        Raises Refusal."""
        ...

    def hold(self, target: Target, guard: Guard) -> Hold:
        """Put `guard` in force and prove that nothing bypasses it. When that cannot be proven,
        raises Refusal (file-in-use, try-later) and leaves no guard in force."""
        ...

    def reclaim(self, claims: list[RecoveredGuard], kept: dict[str, int]) -> dict[int, Hold]:
        """Take over what the previous service left: returns, by token, the hold of each claim that
        is still in force, and releases every guard that belongs to no claim. `kept` are descriptors
        by name, which the caller closes: duplicate those that are needed."""
        ...

    def replay(self) -> None:
        """Report again what is held, now that its seals are known."""
        ...

    def verify(self) -> str:
        """Test whether the enforcer still enforces. Returns why it does not; empty when it does.
        Called about every second, in a thread."""
        ...

    def missed(self) -> int:
        """How often it may have let an operation through unjudged. Should stay 0."""
        ...

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Drop what is kept only to make the next seal cheaper: what has been idle for long, and
        all that is idle on `filesystem`."""
        ...

    def stop(self) -> None:
        """Stop reporting. Guards stay in force."""
        ...


@runtime_checkable
class Watchable(Protocol):
    """A hold that can leave the judging of its range to a registration."""

    def watch(self, key: int) -> None:
        """Set the registration that decides from the next Verdict.WATCH on."""
        ...

    def drain(self) -> None:
        """Wait until no operation that was let through can still change the map. Raises Refusal
        `try-later`."""
        ...

    def track(self, guard: Guard) -> None:
        """Name the guard of a tracked seal in reports from now on; the registration keeps it in
        force."""
        ...

    def untrack(self, token: int) -> None:
        """Undo track()."""
        ...


class Holds:
    """One guard that several enforcers have in force. The first is in front and makes conflicts
    wait."""

    def __init__(self, holds: list[Hold]) -> None:
        self.holds = holds
        self.released = False

    @contextmanager
    def given_up_after(self, seconds: float) -> Iterator[None]:
        """A context for calls that a hold may block for ever. If they take longer than `seconds`,
        the guard is released, and the context raises Refusal `try-later`."""
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
        """The hold whose anchor is used; one that is apart is preferred."""
        anchored = [hold for hold in self.holds if hold.anchor >= 0]
        return next((hold for hold in anchored if hold.apart), anchored[0] if anchored else None)

    @property
    def front(self) -> Hold:
        return self.holds[0]

    def change(self, verdict: Verdict) -> None:
        """See Hold; for all holds."""
        for hold in self.holds:
            hold.change(verdict)

    def resize(self, range: ByteRange) -> None:
        for hold in self.holds:
            hold.resize(range)

    def release(self) -> None:
        """Release from the last to the first, so that an operation that was held by the first is
        not refused by one behind it."""
        self.released = True
        for hold in reversed(self.holds):
            hold.release()


def watchable(hold: Hold) -> Watchable | None:
    """The front of a seal's hold, if it can leave the judging to a registration; else None."""
    front = hold.front if isinstance(hold, Holds) else None
    return front if isinstance(front, Watchable) else None

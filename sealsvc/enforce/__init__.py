"""Enforcers: kernel mechanisms that make conflicting operations wait or fail.

One small interface. An enforcer says what it cannot see (`gaps`) and what it cannot do at all
(`unable`); grants.py chooses, and refuses rather than weaken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sealsvc.filesystem import Filesystem
from sealsvc.host import Target
from sealsvc.messages import Gap, Grant
from sealsvc.model import ByteRange, FileId, Kind, Operation


class Verdict(StrEnum):
    """What a conflicting operation meets."""

    ARMING = "arming"  # held, and nobody is told: a grant is being made
    WAIT = "wait"  # held and reported
    REFUSE = "refuse"  # ETXTBSY
    BUSY = "busy"  # EBUSY: a recall's deadline has passed


@dataclass(frozen=True, slots=True)
class Guard:
    """One sealed range, as an enforcer sees it."""

    token: int
    range: ByteRange
    holder: int
    exclusive: bool
    verdict: Verdict


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


class Hold(Protocol):
    """A guard in force on one file. `anchor` is a descriptor of the file that the enforcer owns,
    apart from the holder's, or -1."""

    @property
    def anchor(self) -> int: ...

    def change(self, verdict: Verdict) -> None: ...

    def release(self) -> None:
        """Idempotent. Lets go on whatever no other guard holds."""
        ...


class Enforcer(Protocol):
    name: str

    def probe(self) -> str:
        """Why the enforcer cannot be used on this kernel; empty when it can."""
        ...

    def unable(self, filesystem: Filesystem, request: Grant) -> str:
        """Why it cannot keep such a seal; empty when it can."""
        ...

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]: ...

    def start(self, deliver: Callable[[Report], None]) -> int:
        """Begin; `deliver` is called from `drain`. Returns the descriptor to poll for reading."""
        ...

    def drain(self) -> None:
        """Deliver the reports that wait. Does not block."""
        ...

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Watch a file system from now on, so that later descriptors are seen."""
        ...

    def hold(self, target: Target, guard: Guard) -> Hold:
        """Put `guard` in force and prove that nobody can get around it: raises Refusal
        (file-in-use, try-later) and leaves nothing armed when that cannot be proven."""
        ...

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Drop what is kept only to make the next seal cheaper."""
        ...

    def stop(self) -> None: ...


class EnforcerSet:
    """The enforcers in use, in order of preference."""

    def __init__(self, enforcers: list[Enforcer]) -> None:
        self.enforcers = enforcers
        self.reasons = {enforcer.name: enforcer.probe() for enforcer in enforcers}

    @property
    def available(self) -> list[Enforcer]:
        return [enforcer for enforcer in self.enforcers if not self.reasons[enforcer.name]]

    def choose(self, filesystem: Filesystem, request: Grant) -> tuple[Enforcer | None, list[str]]:
        """The first enforcer that can keep such a seal, and why the ones before it cannot."""
        why: list[str] = []
        for enforcer in self.enforcers:
            reason = self.reasons[enforcer.name] or enforcer.unable(filesystem, request)
            if not reason:
                return enforcer, why
            why.append(f"{enforcer.name}: {reason}")
        return None, why

"""Chooses the combination of available enforcers that keeps a seal.

If there is none, grants.py refuses the seal: a seal is never weaker than was asked for.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace

from sealsvc.core.model import Gap, Kind, SealTerms
from sealsvc.enforce.base import Enforcer, Guard, Holds
from sealsvc.enforce.overlay_mounts import RISK as OVERLAY_RISK
from sealsvc.enforce.overlay_mounts import OverlayMounts
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target


@dataclass(frozen=True)
class Combination:
    """The enforcers that keep one seal together. The first stands in front."""

    enforcers: tuple[Enforcer, ...]

    @property
    def names(self) -> list[str]:
        return [enforcer.name for enforcer in self.enforcers]

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        """The gaps of the first enforcer that none behind it closes."""
        first, *behind = self.enforcers
        closed = frozenset[str]().union(*(e.closes(filesystem, kind) for e in behind))
        return tuple(gap for gap in first.gaps(filesystem, kind) if gap.risk not in closed)

    def sees(self, risk: str, filesystem: Filesystem, kind: Kind) -> bool:
        """Whether one of the enforcers closes the risk."""
        return any(risk in enforcer.closes(filesystem, kind) for enforcer in self.enforcers)

    def hold(self, target: Target, guard: Guard) -> Holds:
        """Put the guard in force with all enforcers but the late ones. Raises Refusal, with no
        guard left in force."""
        holds = Holds([])
        with ExitStack() as undo:
            undo.callback(holds.release)
            self._add(holds, target, guard, late=False)
            undo.pop_all()
        return holds

    def hold_late(self, holds: Holds, target: Target, guard: Guard) -> bool:
        """Add the late enforcers to `holds`. False when there are none. Raises Refusal."""
        self._add(holds, target, guard, late=True)
        return any(enforcer.late for enforcer in self.enforcers)

    def _add(self, holds: Holds, target: Target, guard: Guard, *, late: bool) -> None:
        first, *behind = self.enforcers
        kind = Kind.EXCLUSIVE if guard.exclusive else Kind.SHARED
        backed = any(OVERLAY_RISK in e.closes(target.filesystem, kind) for e in behind)
        for enforcer in self.enforcers:
            if enforcer.late is late:
                own = (
                    replace(guard, backed=backed)
                    if enforcer is first
                    else replace(guard, behind=first.name)
                )
                holds.holds.append(enforcer.hold(target, own))


class EnforcerSet:
    """The enforcers in use, in order of preference. `reasons` says, by name, why one is not
    available (empty: it is)."""

    def __init__(self, enforcers: list[Enforcer], overlays: OverlayMounts | None = None) -> None:
        self.enforcers, self.overlays = enforcers, overlays
        self.reasons = {enforcer.name: enforcer.probe() for enforcer in enforcers}

    def refuse_overlays(self, filesystem: Filesystem, fd: int, *, at_start: bool = False) -> None:
        """Have overlays refused on this file system if no available enforcer sees truncation
        through them. Called where the policy does not accept that risk."""
        closed = (e.closes(filesystem, Kind.EXCLUSIVE) for e in self.available)
        if self.overlays and not any(OVERLAY_RISK in risks for risks in closed):
            self.overlays.refuse(filesystem, fd, at_start=at_start)

    def judge(self, enforcer: Enforcer, reason: str) -> bool:
        """Take in the result of verify(). True when it differs from the one before."""
        news = self.reasons[enforcer.name] != reason
        self.reasons[enforcer.name] = reason
        return news

    @property
    def available(self) -> list[Enforcer]:
        """The enforcers that can be used now, in order of preference."""
        return [enforcer for enforcer in self.enforcers if not self.reasons[enforcer.name]]

    def named(self, names: list[str]) -> Combination:
        """The combination of these enforcers. Raises KeyError when one is not available."""
        known = {enforcer.name: enforcer for enforcer in self.available}
        return Combination(tuple(known[name] for name in names))

    def choose(
        self, filesystem: Filesystem, terms: SealTerms
    ) -> tuple[Combination | None, list[str]]:
        """The first enforcer that can keep such a seal, with those behind it that close gaps (None:
        there is none), and the reasons why those before it cannot."""
        why: list[str] = []
        for enforcer in self.enforcers:
            reason = self.reasons[enforcer.name] or enforcer.unable(filesystem, terms)
            if not reason:
                behind = (
                    other
                    for other in self.available
                    if other is not enforcer and other.closes(filesystem, terms.kind)
                )
                return Combination((enforcer, *behind)), why
            why.append(f"{enforcer.name}: {reason}")
        return None, why

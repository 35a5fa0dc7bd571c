"""The drift check: is every sealed extent map still the one that was recorded?"""

from __future__ import annotations

from collections.abc import Iterable

from sealsvc import extents
from sealsvc.errors import Refusal
from sealsvc.grants import Grants
from sealsvc.messages import AuditReport, Drift
from sealsvc.recall import Recaller
from sealsvc.seals import Seal


async def audit(grants: Grants, recaller: Recaller, chosen: Iterable[Seal]) -> AuditReport:
    """Compare, and declare lost what has drifted."""
    checked, drifted, unreadable = 0, [], []
    for seal in chosen:
        if "pin" in seal.enforcers:
            unreadable.append(f"{seal.id}: its map is pinned: looking could block (docs/pin.md)")
            continue
        try:
            found = await grants.workers.run(_difference, grants, seal)
        except (Refusal, OSError) as error:
            if seal.live:
                unreadable.append(f"{seal.id}: {error}")
            continue
        if not seal.live:
            continue
        checked += 1
        if found is not None:
            drift = Drift(
                seal=seal.id,
                path=seal.path,
                logical=found.offset,
                expected=found.expected,
                found=found.found,
            )
            drifted.append(drift)
            if not seal.drifted:
                recaller.life.events.publish("drift", seal.id, drift=drift)
                recaller.lose(seal, f"the map differs at {found.offset}")
    return AuditReport(checked=checked, drifted=drifted, unreadable=unreadable)


def _difference(grants: Grants, seal: Seal) -> extents.Difference | None:
    now = grants.host.read_map(seal.hold.anchor, seal.effective)
    return extents.first_difference(seal.map, now, seal.effective)

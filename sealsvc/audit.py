"""The drift check: is every sealed extent map still the one that was recorded?"""

from __future__ import annotations

from collections.abc import Iterable

from sealsvc import extents, states
from sealsvc.errors import Refusal
from sealsvc.grants import Grants
from sealsvc.messages import AuditReport, Drift
from sealsvc.seals import Seal
from sealsvc.states import Step


async def audit(grants: Grants, chosen: Iterable[Seal]) -> AuditReport:
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
            if states.allowed(seal.state, Step.DRIFT):
                grants.move(seal, Step.DRIFT, f"the map differs at {found.offset}")
                grants.events.publish("drift", seal.id, drift=drift)
    return AuditReport(checked=checked, drifted=drifted, unreadable=unreadable)


def _difference(grants: Grants, seal: Seal) -> extents.Difference | None:
    now = grants.host.read_map(seal.hold.anchor, seal.effective)
    return extents.first_difference(seal.map, now, seal.effective)

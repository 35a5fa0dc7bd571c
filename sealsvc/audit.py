"""The drift check: is every sealed extent map still the one that was recorded?"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable
from typing import TypeVar

from sealsvc import extents
from sealsvc.errors import Refusal
from sealsvc.grants import Grants
from sealsvc.host import ExtentMap
from sealsvc.messages import AuditReport, Drift
from sealsvc.recall import Recaller
from sealsvc.seals import Seal

# Seconds that a map may take to be read, and may on a file system that did not answer before.
_PATIENCE, _SHORT_PATIENCE = 10.0, 1.0

# What a file system that was shut down, or whose device has gone, answers.
_DEAD = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN})


T = TypeVar("T")


class _Silent(Refusal):
    """The file system does not answer."""

    def __init__(self) -> None:
        super().__init__("io-error", "the file system does not answer")


async def audit(grants: Grants, recaller: Recaller, chosen: Iterable[Seal]) -> AuditReport:
    """Compare, and declare lost what has drifted or cannot be read any more. Each file system is
    looked at for itself: one that does not answer keeps no other waiting."""
    by_device: dict[int, list[Seal]] = {}
    for seal in chosen:
        by_device.setdefault(seal.file.device, []).append(seal)
    parts = await asyncio.gather(
        *(_audit_filesystem(grants, recaller, device, found) for device, found in by_device.items())
    )
    return AuditReport(
        checked=sum(part.checked for part in parts),
        drifted=[drift for part in parts for drift in part.drifted],
        unreadable=[text for part in parts for text in part.unreadable],
    )


async def _audit_filesystem(
    grants: Grants, recaller: Recaller, device: int, chosen: list[Seal]
) -> AuditReport:
    checked, drifted, unreadable, lost = 0, list[Drift](), list[str](), list[Seal]()
    for number, seal in enumerate(chosen):
        try:
            found = await _look(grants, device, seal, _difference)
        except _Silent:
            left = [other for other in chosen[number:] if other.live]
            unreadable += [f"{other.id}: its file system does not answer" for other in left]
            _tell_silence(grants, device, left)
            break
        except (Refusal, OSError) as error:
            if not seal.live:
                continue
            unreadable.append(f"{seal.id}: {error}")
            if _errno(error) in _DEAD and not seal.drifted:
                recaller.lose(seal, f"its map cannot be read any more: {error}")
                lost.append(seal)
            continue
        grants.silent.discard(device)
        if not seal.live:
            continue
        if "pin" in seal.enforcers:
            unreadable.append(f"{seal.id}: its map is pinned: looking could block (docs/pin.md)")
            continue
        checked += 1
        if found is not None:
            drifted.append(_drift(recaller, seal, found))
    _tell_death(grants, lost)
    return AuditReport(checked=checked, drifted=drifted, unreadable=unreadable)


async def present_map(grants: Grants, seal: Seal) -> ExtentMap:
    """The sealed range's map of this moment."""
    if "pin" in seal.enforcers:
        raise Refusal("io-error", "its map is pinned: looking could block (docs/pin.md)")
    found = await _look(grants, seal.file.device, seal, _present)
    return extents.clip(found, seal.effective)


def _drift(recaller: Recaller, seal: Seal, found: extents.Difference) -> Drift:
    drift = Drift(
        seal=seal.id,
        path=seal.path,
        logical=found.offset,
        expected=found.expected,
        found=found.found,
    )
    if not seal.drifted:
        recaller.life.events.publish("drift", seal.id, drift=drift)
        recaller.lose(seal, f"the map differs at {found.offset}")
    return drift


# Alarms: one for each file system, not one for each seal and each audit.


def _tell_silence(grants: Grants, device: int, left: list[Seal]) -> None:
    if left and device not in grants.silent:
        reason = f"{_named(left[0])} does not answer: {len(left)} seals cannot be audited"
        grants.life.events.publish("alarm", reason=reason)
    grants.silent.add(device)


def _tell_death(grants: Grants, lost: list[Seal]) -> None:
    if lost:
        reason = f"{_named(lost[0])} is shut down or its device is gone: {len(lost)} seals are lost"
        grants.life.events.publish("alarm", reason=reason, seals=[seal.id for seal in lost[:100]])


def _named(seal: Seal) -> str:
    return f"the {seal.filesystem.type} of {seal.filesystem.mount} ({seal.filesystem.source})"


def _errno(error: Refusal | OSError) -> int | None:
    found = error.details.get("errno") if isinstance(error, Refusal) else error.errno
    return found if isinstance(found, int) else None


# Looking: by one thread for each file system, however often a look does not come back.


async def _look(grants: Grants, device: int, seal: Seal, how: Callable[[Grants, Seal], T]) -> T:
    pool = grants.workers.of(("audit", device), 1)
    patience = _SHORT_PATIENCE if device in grants.silent else _PATIENCE
    looking = asyncio.ensure_future(pool.run(how, grants, seal))
    try:
        done, _ = await asyncio.wait([looking], timeout=patience)
    finally:
        looking.cancel()
    if not done:
        raise _Silent
    return looking.result()


def _present(grants: Grants, seal: Seal) -> ExtentMap:
    return grants.host.look(seal.hold.anchor, seal.file, seal.effective)


def _difference(grants: Grants, seal: Seal) -> extents.Difference | None:
    pinned = "pin" in seal.enforcers
    now = grants.host.look(seal.hold.anchor, seal.file, None if pinned else seal.effective)
    return None if pinned else extents.first_difference(seal.map, now, seal.effective)

"""The tripwire: compares maps soon after an operation was let through, instead of at the next
audit.

The gate reports each guarded file on which it let through an operation that was not proven to be a
read, a short time afterwards (native/gate/trip.c). If the map differs then, the judgement was
wrong: the seal is lost at once, and the operation is named.

With bpf, programs at the kernel's map-changing functions report too (enforce/trips.py), also
changes that no enforcer saw. If such a report is certain, the seal is lost even if its map is the
same again when it is read; otherwise the map decides.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sealsvc.core.model import FileId, Operation
from sealsvc.enforce.fanotify import operation_of
from sealsvc.enforce.trips import Trip
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.monitor.drift import audit, evidence
from sealsvc.runtime import clock
from sealsvc.runtime.tasks import Tasks

_OVERLAID_PAUSE = 0.2  # seconds between two comparisons of a map below an overlay
_LOOKS = (0.0, 0.1, 1.0)  # seconds before each comparison after a trip
_SHARE = 20  # pause after a comparison, in multiples of its duration


class Tripwire:
    """Compares the maps of files that were touched."""

    def __init__(self, grants: Grants, recaller: Recaller, tasks: Tasks) -> None:
        self.grants, self.recaller, self.tasks = grants, recaller, tasks
        self._passed: dict[tuple[int, int], Operation] = {}  # since the last look, by file
        self._looking: set[tuple[int, int]] = set()
        self._following: set[tuple[int, int]] = set()
        self._overlaid: set[int] = set()  # seals, by token

    def touched(self, raw: Any) -> None:
        """Handle a struct seal_report: an operation on a guarded file was let through. `raw` is
        valid only during the call. On the event loop."""
        file = (int(raw.device), int(raw.inode))
        self._passed[file] = operation_of(raw)
        if file not in self._looking:
            self._looking.add(file)
            self.tasks.spawn("tripwire", self._look(file))

    def tripped(self, trip: Trip) -> None:
        """Handle a trip: a kernel function changes, or has changed, the map of a sealed range. The
        function may still hold the inode's lock, which reading the map waits for. On the event
        loop."""
        for seal in self._live(trip.file):
            if _is_certain(trip, seal):
                self._lose(seal, trip)
        file = (trip.file.device, trip.file.inode)
        if file not in self._following:
            self._following.add(file)
            self.tasks.spawn("trip", self._follow(trip))

    def _lose(self, seal: Seal, trip: Trip) -> None:
        self.recaller.lose(seal, f"tripwire: its map was changed: {trip}")
        self.tasks.spawn("tell a trip", self._tell(seal, trip, "was changed"))

    async def _follow(self, trip: Trip) -> None:
        """Compare the map several times: the trip may not be certain, or its function may not have
        ended yet."""
        file = (trip.file.device, trip.file.inode)
        try:
            for pause in _LOOKS:
                await asyncio.sleep(pause)
                seals = self._watched(trip.file)
                report = await audit(self.grants, self.recaller, seals, str(trip))
                for drift in report.drifted:
                    seal = next(seal for seal in seals if seal.id == drift.seal)
                    await self._tell(seal, trip, f"differs at {drift.logical} after a change")
        finally:
            self._following.discard(file)

    async def _tell(self, seal: Seal, trip: Trip, what: str) -> None:
        stack = await self.grants.workers.of("symbols", 1).run(trip.symbols)
        self.grants.machine.events.publish(
            "alarm",
            seal.id,
            reason=f"tripwire: the map of {seal.path} {what}: {trip};"
            f" its stack: {' < '.join(stack)}",
        )

    def _live(self, file: FileId) -> list[Seal]:
        seals = self.grants.machine.table.of_inode(file.device, file.inode)
        return [seal for seal in seals if seal.live and not seal.drifted]

    def _watched(self, file: FileId) -> list[Seal]:
        """The live seals of a file that are compared: not pinned ones, whose map the kernel keeps,
        and of which reading the map could block (docs/pin.md)."""
        return [seal for seal in self._live(file) if "pin" not in seal.enforcers]

    def overlaid(self, seal: Seal, reason: str) -> None:
        """An overlay reaches the sealed file. No enforcer sees what is done through it, so the seal
        is recalled and its map is compared periodically until it ends."""
        self.recaller.overlaid(seal, reason)
        if seal.token not in self._overlaid:
            self._overlaid.add(seal.token)
            self.tasks.spawn("a map below an overlay", self._look_at_overlaid(seal))

    async def _look_at_overlaid(self, seal: Seal) -> None:
        try:
            while seal.live and not seal.drifted and "pin" not in seal.enforcers:
                await audit(self.grants, self.recaller, [seal])
                await asyncio.sleep(_OVERLAID_PAUSE)
        finally:
            self._overlaid.discard(seal.token)

    async def _look(self, file: tuple[int, int]) -> None:
        try:
            while (passed := self._passed.pop(file, None)) is not None:
                began = clock.now()
                await self._compare(file, passed)
                await asyncio.sleep(_SHARE * (clock.now() - began))
        finally:
            self._looking.discard(file)

    async def _compare(self, file: tuple[int, int], passed: Operation) -> None:
        seals = self._watched(FileId(*file))
        if not seals:
            return
        report = await audit(
            self.grants, self.recaller, seals, f"this was let through: {evidence(passed)}"
        )
        if report.drifted:
            self.grants.machine.events.publish(
                "alarm",
                report.drifted[0].seal,
                reason=f"tripwire: the map of {report.drifted[0].path} differs after this was let"
                f" through: {evidence(passed)}",
                seals=[drift.seal for drift in report.drifted],
            )


def _is_certain(trip: Trip, seal: Seal) -> bool:
    """Whether the trip proves that the seal's map has changed. For a registration it never does:
    it may have holes, so that the map must be compared."""
    registration = seal.place is not None and seal.place.slot < 0
    return (
        trip.certain
        and trip.time >= seal.map_since
        and trip.overlaps(seal.effective)
        and not registration
        and not seal.may_change
    )

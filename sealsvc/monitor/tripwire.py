"""The tripwire: maps are compared when something was let through, and not a minute later.

The gate reports each guarded file on which it let through what is no proven read, some time after
it did (native/gate/trip.c). A map that differs then means that the judgement was wrong: the seal is
lost at once, and the operation is named.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sealsvc.core.model import Operation
from sealsvc.enforce.fanotify import operation_of
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.seals import Seal
from sealsvc.monitor.drift import audit, evidence
from sealsvc.runtime import clock
from sealsvc.runtime.tasks import Tasks

_OVERLAID_PAUSE = 0.2  # seconds
_SHARE = 20  # looks at a file take one part in so many of the time


class Tripwire:
    def __init__(self, grants: Grants, recaller: Recaller, tasks: Tasks) -> None:
        self.grants, self.recaller, self.tasks = grants, recaller, tasks
        self._passed: dict[tuple[int, int], Operation] = {}  # since the last look, by file
        self._looking: set[tuple[int, int]] = set()
        self._overlaid: set[int] = set()  # seals, by token

    def touched(self, raw: Any) -> None:
        """struct seal_report, valid only now; on the event loop."""
        file = (int(raw.device), int(raw.inode))
        self._passed[file] = operation_of(raw)
        if file not in self._looking:
            self._looking.add(file)
            self.tasks.spawn("tripwire", self._look(file))

    def overlaid(self, seal: Seal, reason: str) -> None:
        """An overlay reaches the sealed file: what is done through it is seen by nobody, and the
        map is looked at until the seal is over."""
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
        # A pinned map is held by the kernel itself, and looking at it could block (docs/pin.md).
        seals = [
            seal
            for seal in self.grants.life.table.of_inode(*file)
            if seal.live and not seal.drifted and "pin" not in seal.enforcers
        ]
        if not seals:
            return
        report = await audit(self.grants, self.recaller, seals, passed)
        if report.drifted:
            self.grants.life.events.publish(
                "alarm",
                report.drifted[0].seal,
                reason=f"tripwire: the map of {report.drifted[0].path} differs after this was let"
                f" through: {evidence(passed)}",
                seals=[drift.seal for drift in report.drifted],
            )

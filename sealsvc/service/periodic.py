"""What the service does again and again: expiry, pressure, alarms, audits of the maps."""

from __future__ import annotations

import asyncio
import itertools

from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.overlay_mounts import RISK
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.monitor.badblocks import BadBlocks
from sealsvc.monitor.drift import audit
from sealsvc.rings.registrations import Rings
from sealsvc.runtime import clock
from sealsvc.runtime.tasks import Tasks
from sealsvc.service.alarms import AlarmList

_BAD_BLOCKS_PAUSE = 5.0  # seconds
_REFUSED_PAUSE = 5.0  # seconds between two queries of how many overlays were refused


class Periodic:
    """`start` spawns the tasks. `keeper` and `rings` are None on a simulated system."""

    def __init__(
        self,
        grants: Grants,
        recaller: Recaller,
        enforcers: EnforcerSet,
        keeper: Keeper | None,
        rings: Rings | None,
        alarms: AlarmList,
        tasks: Tasks,
    ) -> None:
        self._grants, self._recaller, self._enforcers = grants, recaller, enforcers
        self._keeper, self._rings, self._alarms, self._tasks = keeper, rings, alarms, tasks
        self._life, self._table, self._events = (
            grants.machine,
            grants.machine.table,
            grants.machine.events,
        )
        self._badblocks = BadBlocks(recaller, self._events, grants.workers)
        self._wall_clock = clock.WallClock()
        self._missed: dict[str, int] = {}  # by enforcer, at the last look

    def start(self, audit_interval: float) -> None:
        """`audit_interval` is in seconds; 0: maps are audited only when something tells to."""
        self._tasks.spawn("housekeeping", self._housekeeping())
        self._tasks.spawn("refused overlays", self._look_for_refused_overlays())
        self._tasks.spawn("bad blocks", self._look_for_bad_blocks())
        if audit_interval:
            self._tasks.spawn("audit", self._audit(audit_interval))

    async def audit_all(self) -> None:
        """Compare the map of every seal."""
        await audit(self._grants, self._recaller, self._table)

    def _look_for_lapses(self) -> None:
        """Audit every map if an enforcer may have let an operation through unjudged."""
        for enforcer in self._enforcers.available:
            missed, before = enforcer.missed(), self._missed.get(enforcer.name, 0)
            self._missed[enforcer.name] = missed
            if missed > before and len(self._table):
                reason = f"{enforcer.name} may have let {missed - before} operations through"
                self._events.publish("alarm", reason=reason)
                self._tasks.spawn(
                    "audit after a lapse", audit(self._grants, self._recaller, self._table)
                )

    async def _look_for_refused_overlays(self) -> None:
        """Raise an alarm when overlays were refused. Their number is asked of the keeper, in a
        thread and apart from the housekeeping, because a keeper that is stopped does not
        answer."""
        overlays, before = self._enforcers.overlays, 0
        while overlays is not None and self._keeper is not None:
            await asyncio.sleep(_REFUSED_PAUSE)
            if self._keeper.silent:
                continue
            refused = await self._grants.workers.of("overlays", 1).run(overlays.refused)
            if refused > before:
                reason = (
                    f"{refused - before} overlays of unprivileged users were refused: truncation"
                    f" through them is not seen, and {RISK} is no accepted risk"
                )
                self._events.publish("alarm", reason=reason)
            before = refused

    async def _housekeeping(self) -> None:
        for tick in itertools.count():
            await asyncio.sleep(0.5)
            if tick % 10 == 0:
                self._look_for_lapses()
                await self._alarms.save()
            self.tick()

    def tick(self) -> None:
        """Periodic work: clock jumps, expiry, pressure, the journal's size, rings. Called about
        every 0.5 s, and on request of the simulated system."""
        clock.look_for_jumps()
        self._recaller.publish_repeated()
        if jump := self._wall_clock.jump():
            way = "ahead" if jump > 0 else "back"
            reason = (
                f"the wall clock was set {way} by {abs(jump):.0f} s: times recorded are affected"
            )
            self._events.publish("alarm", reason=reason)
        if self._keeper and self._keeper.silent:
            return
        self._recaller.expire()
        self._recaller.relieve()
        self._life.journal.rewrite_if_large(self._table)
        if self._rings:
            self._rings.tick()
        for enforcer in self._enforcers.available:
            enforcer.forget()

    async def _look_for_bad_blocks(self) -> None:
        while not self._grants.host.simulated:
            await asyncio.sleep(_BAD_BLOCKS_PAUSE)
            await self._badblocks.look(self._table)

    async def _audit(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self.audit_all()

"""Canary: tests about every second whether each enforcer still enforces.

An enforcer may stop working without a report, for example when tracing is turned off or the keeper
is stopped. So each is asked to verify itself. One that fails is used for no new grants, an alarm is
raised, and every seal is audited until it works again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sealsvc.enforce.base import Enforcer
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.workers import Workers

INTERVAL = 1.0  # seconds between two trials
_PATIENCE = 5.0  # seconds that a trial may take


class Canary:
    """Runs the trials. `audit` audits every seal."""

    def __init__(
        self,
        enforcers: EnforcerSet,
        events: EventLog,
        workers: Workers,
        audit: Callable[[], Awaitable[None]],
    ) -> None:
        self.enforcers, self.events, self.workers, self.audit = enforcers, events, workers, audit

    async def run(self) -> None:
        """Verify, for ever, the enforcers that are available at the start."""
        watched = self.enforcers.available
        while True:
            await asyncio.sleep(INTERVAL)
            await asyncio.gather(*(self._try(enforcer) for enforcer in watched))
            if len(self.enforcers.available) < len(watched):
                await self.audit()

    async def _try(self, enforcer: Enforcer) -> None:
        reason = await self._verify(enforcer)
        if not self.enforcers.judge(enforcer, reason):
            return
        if reason:
            told = f"{enforcer.name} does not enforce any more: {reason}"
        else:
            told = f"{enforcer.name} enforces again; maps may have changed meanwhile"
        self.events.publish("alarm", reason=told)
        await self.audit()

    async def _verify(self, enforcer: Enforcer) -> str:
        trial = self.workers.of(("canary", enforcer.name), 1).run(enforcer.verify)
        try:
            return await asyncio.wait_for(trial, _PATIENCE)
        except TimeoutError:
            return f"a trial did not end within {_PATIENCE:g} s"
        except Exception as error:  # whatever prevents the trial counts as a failure
            return f"it cannot be tried: {error}"

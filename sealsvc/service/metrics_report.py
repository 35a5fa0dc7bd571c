"""Builds the report of all metrics of the service."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.recall import Recaller
from sealsvc.protocol.admin import MeasuresReport
from sealsvc.rings.registrations import Rings
from sealsvc.runtime import journald
from sealsvc.runtime.users import Users
from sealsvc.service.granting import Granting
from sealsvc.service.metrics import Metrics


class MetricsReporter:
    """Collects metrics from the parts of the service. `tags` returns the counters of integrity, {}
    while no tags are served."""

    def __init__(
        self,
        metrics: Metrics,
        granting: Granting,
        recaller: Recaller,
        enforcers: EnforcerSet,
        users: Users,
        rings: Rings | None,
        tags: Callable[[], dict[str, int]],
    ) -> None:
        self._metrics, self._granting, self._recaller = metrics, granting, recaller
        self._enforcers, self._users, self._rings, self._tags = enforcers, users, rings, tags

    def report(self, open_alarms: int) -> MeasuresReport:
        """The metrics as they are now. Those of rings are left out when the keeper does not
        answer."""
        metrics = self._metrics
        rings: tuple[dict[str, dict[str, int]], dict[str, float]] = ({}, {})
        if self._rings is not None:
            with suppress(KeeperError):
                rings = self._rings.metrics()
        return MeasuresReport(
            run=self._granting.machine.events.run,
            counters={name: dict(counter) for name, counter in metrics.counters.items()}
            | {
                "limits": dict(self._users.overruns.counts),
                "log": {"dropped": journald.dropped()},
                "integrity": self._tags(),
            }
            | rings[0],
            latencies={name: found.told() for name, found in metrics.latencies.items()},
            gauges={
                "queue": {
                    "grants": float(self._granting.grants.queued),
                    "conflicts": float(len(self._recaller.waiting)),
                    "claims": float(len(self._granting.tickets)),
                },
                "lapses": {e.name: float(e.missed()) for e in self._enforcers.available},
                "rings": rings[1],
                "alarms": {"open": float(open_alarms)},
            },
        )

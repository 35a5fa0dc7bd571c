"""Handlers of requests about the service itself: its status, and the file systems below its
roots."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter

import msgspec

from sealsvc import __version__
from sealsvc.control.connection import Connection
from sealsvc.core.model import Gap, Kind, SealTerms
from sealsvc.core.paths import lies_below
from sealsvc.enforce.base import Enforcer
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.enforce.trips import Tripping
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.recall import Recaller
from sealsvc.lifecycle.returns import Returns
from sealsvc.linux.filesystem import Filesystem
from sealsvc.protocol.base import VERSION
from sealsvc.protocol.system import (
    EnforcerInfo,
    FilesystemInfo,
    FilesystemList,
    Filesystems,
    PmemRegion,
    RegistryInfo,
    ServiceStatus,
    Status,
)
from sealsvc.runtime import clock
from sealsvc.service.router import Answers


class System:
    """Answers Status and Filesystems. `connections` returns the number of connected clients."""

    def __init__(
        self,
        grants: Grants,
        returns: Returns,
        recaller: Recaller,
        enforcers: EnforcerSet,
        kernel: str,
        connections: Callable[[], int],
    ) -> None:
        self.grants, self.returns, self.recaller = grants, returns, recaller
        self.machine, self.table = grants.machine, grants.machine.table
        self.policy, self.registry = grants.policy, grants.registry
        self.enforcers, self.kernel, self.connections = enforcers, kernel, connections
        self.started = clock.now()

    def answers(self) -> Answers:
        return {Filesystems: self._filesystems, Status: self._status}

    async def _filesystems(self, _: Connection, request: Filesystems) -> FilesystemList:
        host, below = self.grants.host, request.below

        def look(roots: Sequence[str]) -> list[tuple[Filesystem, tuple[int, int] | None]]:
            return [(found, host.region_of(found.device)) for found in host.filesystems(roots)]

        found = await self.grants.workers.run(look, self.policy.roots)
        seals = [s for s in self.table if below is None or lies_below(s.path, below)]
        counts = Counter(seal.file.device for seal in seals)
        return FilesystemList(
            filesystems=[
                self._filesystem(filesystem, region, counts[filesystem.device])
                for filesystem, region in found
            ]
        )

    def _filesystem(
        self, filesystem: Filesystem, region: tuple[int, int] | None, seals: int
    ) -> FilesystemInfo:
        able = [] if filesystem.unsupported else self.enforcers.available
        gaps: dict[str, Gap] = {}
        for kind in Kind:
            chosen, _ = self.enforcers.choose(filesystem, SealTerms(kind))
            if chosen is not None:
                gaps |= {gap.risk: gap for gap in chosen.gaps(filesystem, kind)}
        return FilesystemInfo(
            mount=filesystem.mount,
            type=filesystem.type,
            device=filesystem.source,
            block_size=filesystem.block_size,
            reflink=filesystem.reflink,
            dax=filesystem.dax,
            enforcers=[enforcer.name for enforcer in able],
            supported=bool(able),
            reason=filesystem.unsupported or ("" if able else "no enforcer is available"),
            gaps=list(gaps.values()),
            seals=seals,
            pmem=None if region is None else PmemRegion(start=region[0], length=region[1]),
        )

    async def _status(self, _: Connection, request: Status) -> ServiceStatus:
        below = request.below
        seals = [s for s in self.table if below is None or lies_below(s.path, below)]
        counts = dict(Counter(str(state) for state in map(attrgetter("state"), seals)))
        waiting = self.recaller.waiting.values()
        status = ServiceStatus(
            version=__version__,
            protocol=VERSION,
            pid=os.getpid(),
            uptime=clock.now() - self.started,
            simulated=self.grants.host.simulated,
            kernel=self.kernel,
            roots=self._roots(below),
            enforcers=[self._enforcer(enforcer) for enforcer in self.enforcers.enforcers],
            seals=counts,
            conflicts_waiting=sum(below is None or lies_below(w.path, below) for w in waiting),
            connections=0,
            counters={},
            registry=RegistryInfo(enabled=self.registry.enabled, lag=0, lost=0, troubles=[]),
            run=self.machine.events.run,
        )
        return status if below is not None else self._whole(status)

    def _whole(self, status: ServiceStatus) -> ServiceStatus:
        """The status, completed with what a caller that is confined to directories may not see:
        connections, counters, registry."""
        registry = self.registry
        return msgspec.structs.replace(
            status,
            connections=self.connections(),
            counters={
                **self.grants.counters,
                **self.returns.counters,
                **self.recaller.counters,
                **self.recaller.fencing.counters,
            },
            registry=RegistryInfo(
                enabled=registry.enabled,
                lag=registry.lag,
                lost=registry.lost,
                troubles=registry.troubles,
                restarts=registry.restarts,
            ),
        )

    def _roots(self, below: list[str] | None) -> list[str]:
        """The roots that lie below one of the directories, or contain one; all roots for None."""
        return [
            root
            for root in self.policy.roots
            if below is None
            or lies_below(root, below)
            or any(lies_below(directory, [root]) for directory in below)
        ]

    def _enforcer(self, enforcer: Enforcer) -> EnforcerInfo:
        reason = self.enforcers.reasons[enforcer.name]
        limits = enforcer.untripped() if isinstance(enforcer, Tripping) else []
        return EnforcerInfo(name=enforcer.name, available=not reason, reason=reason, limits=limits)

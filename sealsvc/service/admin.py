"""What operators ask and no holder does (protocol/admin.py)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypeGuard, get_args

from sealsvc.core.errors import Refusal
from sealsvc.enforce.keeper import KeeperError
from sealsvc.jobs.jobs import JobRunner
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import (
    AcknowledgeAlarm,
    Alarms,
    AnyRequest,
    CancelJob,
    CheckPolicy,
    Conflicts,
    Coverage,
    Files,
    Holders,
    JobList,
    Jobs,
    Measures,
    MeasuresReport,
    ReloadPolicy,
    Result,
    ShowJob,
    ShowPolicy,
    StartJob,
)
from sealsvc.runtime import journald
from sealsvc.service import listings
from sealsvc.service.alarms import AlarmList
from sealsvc.service.reload import PolicyFile

if TYPE_CHECKING:
    from sealsvc.service.router import Service

_ASKED: tuple[type, ...] = get_args(AnyRequest)


def asked_at_desk(request: object) -> TypeGuard[AnyRequest]:
    return isinstance(request, _ASKED)


class Desk:
    def __init__(
        self, service: Service, policy_file: PolicyFile, jobs: JobRunner, alarms: AlarmList
    ) -> None:
        self.service, self.policy_file, self.jobs = service, policy_file, jobs
        self.alarms = alarms

    async def answer(self, peer: Peer, request: AnyRequest) -> Result:
        service = self.service
        match request:
            case Files():
                seals = service.seen(peer)
                if request.path is not None:
                    seals = await service.of_path(peer, seals, request.path, request.below)
                return listings.files(seals, request)
            case Holders():
                return listings.holders(service.seen(peer), request)
            case ShowJob() | CancelJob() if self.jobs.owner(request.job) == peer.uid:
                return await self._job(request)
        operator = service.policy.is_operator(peer)
        if isinstance(request, Conflicts):
            waiting = service.recaller.waiting.values()
            return listings.conflicts(waiting, request, None if operator else peer.uid)
        if not operator:
            raise Refusal("denied", f"uid {peer.uid} is not an operator", {"uid": peer.uid})
        match request:
            case Alarms():
                return self.alarms.page(request)
            case AcknowledgeAlarm():
                by = request.principal or f"uid {peer.uid}"
                return self.alarms.acknowledge(request.alarm, by, request.below)
            case Measures():
                return self._measures()
            case ShowPolicy():
                return self.policy_file.show()
            case CheckPolicy():
                return self.policy_file.check(request.text)
            case ReloadPolicy():
                return self.policy_file.reload()
        return await self._job(request)

    async def _job(self, request: AnyRequest) -> Result:
        match request:
            case StartJob():
                return await self.jobs.start(request)
            case ShowJob():
                return self.jobs.find(request.job)
            case Jobs():
                return JobList(jobs=self.jobs.all())
            case CancelJob():
                return await self.jobs.cancel(request.job)
            case Coverage():
                return await self.jobs.coverage(request)
        raise Refusal("unknown-operation", "the service does not serve this operation")

    def _measures(self) -> MeasuresReport:
        service, taken = self.service, self.service.measures
        rings: tuple[dict[str, dict[str, int]], dict[str, float]] = ({}, {})
        if service.rings is not None:
            with suppress(KeeperError):  # its numbers are missing this time
                rings = service.rings.measures()
        return MeasuresReport(
            run=service.life.events.run,
            counters={name: dict(counter) for name, counter in taken.counters.items()}
            | {
                "limits": dict(service.users.overruns.counts),
                "log": {"dropped": journald.dropped()},
                "integrity": service.integrity.counters() if service.integrity else {},
            }
            | rings[0],
            latencies={name: found.told() for name, found in taken.latencies.items()},
            gauges={
                "queue": {
                    "grants": float(service.grants.queued),
                    "conflicts": float(len(service.recaller.waiting)),
                    "claims": float(len(service.claims)),
                },
                "lapses": {e.name: float(e.lapses()) for e in service.enforcers.available},
                "rings": rings[1],
                "alarms": {"open": float(self.alarms.open)},
            },
        )

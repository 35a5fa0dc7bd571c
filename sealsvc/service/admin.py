"""Handlers of the requests in protocol/admin.py, except Redeem (granting.py)."""

from __future__ import annotations

from typing import get_args

from sealsvc.control.connection import Connection
from sealsvc.core.errors import Refusal
from sealsvc.jobs.jobs import JobRunner
from sealsvc.lifecycle.recall import Recaller
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
    Redeem,
    ReloadPolicy,
    Result,
    ShowJob,
    ShowPolicy,
    StartJob,
)
from sealsvc.service import listings
from sealsvc.service.alarms import AlarmList
from sealsvc.service.metrics_report import MetricsReporter
from sealsvc.service.reload import PolicyFile
from sealsvc.service.router import Answers
from sealsvc.service.visible import Visible


class Admin:
    """Answers administrative requests. Every user may list the files and holders of seals that it
    may see, its own operations that wait, and show or cancel its own jobs; all else is for
    operators."""

    def __init__(
        self,
        visible: Visible,
        recaller: Recaller,
        policy_file: PolicyFile,
        jobs: JobRunner,
        alarms: AlarmList,
        metrics: MetricsReporter,
    ) -> None:
        self.visible, self.recaller, self.policy = visible, recaller, visible.policy
        self.policy_file, self.jobs, self.alarms = policy_file, jobs, alarms
        self.metrics = metrics

    def answers(self) -> Answers:
        return dict.fromkeys(
            [kind for kind in get_args(AnyRequest) if kind is not Redeem], self._answer
        )

    async def _answer(self, connection: Connection, request: AnyRequest) -> Result:
        peer, visible = connection.peer, self.visible
        match request:
            case Files():
                seals = visible.seen(peer)
                if request.path is not None:
                    seals = await visible.of_path(peer, seals, request.path, request.below)
                return listings.files(seals, request)
            case Holders():
                return listings.holders(visible.seen(peer), request)
            case ShowJob() | CancelJob() if self.jobs.owner(request.job) == peer.uid:
                return await self._job(request)
        operator = self.policy.is_operator(peer)
        if isinstance(request, Conflicts):
            waiting = self.recaller.waiting.values()
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
                return self.metrics.report(self.alarms.open)
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

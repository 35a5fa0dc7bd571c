"""Jobs: what takes longer than a request should. They report progress as events, can be cancelled,
and are remembered for a while; they end with the service."""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.jobs.store import REMEMBERED, JobStore, KeptJob
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.paths import Paths
from sealsvc.lifecycle.recall import Recaller
from sealsvc.linux import mountinfo
from sealsvc.monitor.drift import audit
from sealsvc.protocol.admin import (
    Coverage,
    CoverageReport,
    CoverageRow,
    JobInfo,
    JobKind,
    JobState,
    StartJob,
)
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.limits import Asked
from sealsvc.runtime.tasks import Tasks

log = logging.getLogger(__name__)

_STOPPED = "the service was stopped while the job was under way"
_KILLED = "the service ended without a stop while the job was under way"
_BATCH = 64  # seals audited between two reports of progress
_PAUSE = 0.25  # seconds between two events of one job
_LINE = 64 * 1024
_SHOWN = 100  # drifts in a result
_END_WITHIN = 30.0  # seconds that a cancelled doctor has to clean up
_ROWS = 150  # rows of coverage in one message


@dataclass(slots=True)
class Job:
    info: JobInfo
    uid: int | None = None  # who began it, where that one may look after it
    task: asyncio.Task[None] | None = None
    told_at: float = 0.0
    cancelled: bool = False  # by somebody, not by the end of the service

    @property
    def over(self) -> bool:
        return self.info.state is not JobState.RUNNING


@dataclass(slots=True)
class _Measured:
    at: float
    rows: list[CoverageRow] = field(default_factory=list)


class JobRunner:
    def __init__(
        self,
        grants: Grants,
        recaller: Recaller,
        events: EventLog,
        tasks: Tasks,
        paths: Paths,
        store: JobStore,
    ) -> None:
        self.grants, self.recaller, self.events = grants, recaller, events
        self.tasks, self.paths, self._store = tasks, paths, store
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._coverage: dict[str, _Measured] = {}

    async def start(self, request: StartJob) -> JobInfo:
        work = self._work(request)
        if request.path is not None:
            # Below a root, by no symbolic link: the doctor writes there with the service's rights.
            await self.paths.identify(request.path, ["/"])
        for job in self.running:
            if job.info.kind is request.kind:
                message = f"job {job.info.id} of this kind is under way"
                raise Refusal("limit-reached", message, {"job": job.info.id}, retry_after=5.0)
        return await self.begin(request.kind, work, request.path, request.principal)

    @property
    def running(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.over]

    async def resume(self) -> None:
        """Take over what is on file of the service before: what it left running is interrupted."""
        for kept in self._store.load():
            job = self._jobs[kept.info.id] = Job(kept.info, kept.uid)
            if not job.over:
                self.tell(job, state=JobState.INTERRUPTED, error=_KILLED)
        await self.save()

    async def save(self) -> None:
        await self._store.save(lambda: [KeptJob(job.info, job.uid) for job in self._jobs.values()])

    async def begin(
        self,
        kind: JobKind,
        work: Callable[[Job], Awaitable[dict[str, Any]]],
        path: str | None,
        principal: str,
        uid: int | None = None,
        source: str | None = None,
    ) -> JobInfo:
        """Begin a job whose result is what `work` returns. User `uid` may see and cancel it. It is
        on file when this returns."""
        info = JobInfo(
            id=secrets.token_hex(8),
            kind=kind,
            state=JobState.RUNNING,
            path=path,
            source=source,
            principal=principal,
            started_at=time.time(),
        )
        job = self._jobs[info.id] = Job(info, uid)
        self._make_room()
        job.task = self.tasks.spawn(f"job {info.id}", self._run(job, work))
        await self.save()
        return info

    def _make_room(self) -> None:
        """Forget, of the jobs that are over, the oldest of whoever has most of them: a user, or a
        principal of the REST API."""
        while len(self._jobs) > REMEMBERED:
            over = [job for job in self._jobs.values() if job.over]
            if not over:
                return
            ((most, _),) = Counter(map(self._asker, over)).most_common(1)
            oldest = next(job for job in over if self._asker(job) == most)
            del self._jobs[oldest.info.id]

    def _asker(self, job: Job) -> Asked:
        if job.uid is None:  # only operators begin such jobs
            return -1, job.info.principal
        return self.grants.policy.asker(job.uid, job.info.principal)

    def _work(self, request: StartJob) -> Callable[[Job], Awaitable[dict[str, Any]]]:
        if request.kind is JobKind.COPY:
            raise Refusal("bad-request", "a copy begins with start-copy (POST /v1/copies)")
        if request.kind is JobKind.RELOCATE:
            raise Refusal("bad-request", "a relocation begins with relocate (POST /v1/relocations)")
        if request.kind is JobKind.AUDIT:
            if request.path is not None:
                raise Refusal("bad-request", "an audit job looks at every seal: it takes no path")
            return self._audit
        if request.path is None:
            raise Refusal("bad-request", "the doctor needs the path of a directory")
        if self.grants.host.simulated:
            raise Refusal("filesystem-unsupported", "there is nothing to measure in a simulation")
        return self._doctor

    def find(self, job: str) -> JobInfo:
        if job not in self._jobs:
            raise Refusal("no-such-job", f"there is no job {job}", {"job": job})
        return self._jobs[job].info

    def owner(self, job: str) -> int | None:
        """The user who began it; None also where there is no such job."""
        return self._jobs[job].uid if job in self._jobs else None

    def all(self) -> list[JobInfo]:
        bare = msgspec.structs.replace
        return [bare(job.info, result={}) for job in reversed(self._jobs.values())]

    async def ended(self, job: str) -> JobInfo:
        """Wait for its end. Raises Refusal `no-such-job`."""
        self.find(job)
        if (task := self._jobs[job].task) is not None:
            await asyncio.wait([task])
        return self.find(job)

    async def cancel(self, job: str) -> JobInfo:
        self.find(job)
        task = self._jobs[job].task
        if task is not None and not task.done():
            self._jobs[job].cancelled = True
            task.cancel()
            await asyncio.wait([task])
        return self.find(job)

    async def coverage(self, request: Coverage) -> CoverageReport:
        await self.paths.identify(request.path, request.below)
        mount = _mount_of(request.path)
        found = self._coverage.get(mount)
        rows = found.rows if found else []
        end = request.start + min(request.limit, _ROWS)
        return CoverageReport(
            mount=mount,
            measured_at=found.at if found else None,
            rows=rows[request.start : end],
            next=end if end < len(rows) else None,
        )

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[dict[str, Any]]]) -> None:
        self.tell(job)
        try:
            result = await work(job)
            self.tell(job, state=JobState.DONE, result=result)
        except asyncio.CancelledError:
            if job.cancelled:
                self.tell(job, state=JobState.CANCELLED)
            else:
                self.tell(job, state=JobState.INTERRUPTED, error=_STOPPED)
        except (Refusal, OSError) as error:
            self.tell(job, state=JobState.FAILED, error=str(error))
        except BaseException:
            self.tell(job, state=JobState.FAILED, error="internal error: see the service's log")
            raise
        finally:
            await self.save()

    def tell(self, job: Job, **changes: Any) -> None:
        """Change fields of the job's JobInfo; told as an event, but not too often."""
        over = "state" in changes
        if over:
            changes["ended_at"] = time.time()
        job.info = msgspec.structs.replace(job.info, **changes)
        now = time.monotonic()
        if over or now >= job.told_at + _PAUSE:
            job.told_at = now
            self.events.publish("job", job=msgspec.structs.replace(job.info, result={}))

    async def _audit(self, job: Job) -> dict[str, Any]:
        seals = list(self.grants.machine.table)
        checked, drifted, unreadable = 0, list[Any](), list[str]()
        for start in range(0, len(seals), _BATCH):
            batch = [seal for seal in seals[start : start + _BATCH] if seal.live]
            report = await audit(self.grants, self.recaller, batch)
            checked += report.checked
            drifted += report.drifted
            unreadable += report.unreadable
            self.tell(job, done=start + len(batch), total=len(seals))
        return {
            "checked": checked,
            "drifted": msgspec.to_builtins(drifted[:_SHOWN]),
            "unreadable": unreadable[:_SHOWN],
        }

    async def _doctor(self, job: Job) -> dict[str, Any]:
        """In a service of its own: what is measured shows in no list, counter or alarm of ours."""
        path = job.info.path or ""
        measured = _Measured(time.time())
        enforcers = ",".join(e.name for e in self.grants.enforcers.available)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sealsvc.doctor", path, enforcers),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
        )
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            async for line in child.stdout:
                self._measured(job, measured, line)
            said = (await child.stderr.read()).decode(errors="replace")
            if await child.wait():
                raise Refusal("io-error", f"the doctor failed: {said[-500:].strip()}")
        finally:
            if child.returncode is None:
                await _end(child)
        self._coverage[_mount_of(path)] = measured
        counts: dict[str, int] = {}
        for row in measured.rows:
            counts[row.result] = counts.get(row.result, 0) + 1
        return {"mount": _mount_of(path), "rows": len(measured.rows), "results": counts}

    def _measured(self, job: Job, measured: _Measured, line: bytes) -> None:
        told = msgspec.json.decode(line)
        if "total" in told:
            self.tell(job, total=told["total"])
            return
        row = msgspec.convert(told, CoverageRow)
        measured.rows.append(row)
        step = f"{row.operation} {row.kind} {row.conflict}: {row.result}"
        self.tell(job, done=len(measured.rows), step=step)


async def _end(child: asyncio.subprocess.Process) -> None:
    """End the doctor, which takes its service and its scratch files with it."""
    child.terminate()
    try:
        await asyncio.wait_for(child.wait(), _END_WITHIN)
    except TimeoutError:
        log.warning("the doctor (pid %d) does not end: it is killed", child.pid)
        child.kill()
        await child.wait()


def _mount_of(path: str) -> str:
    """The mount point that a path lies on, by the mount table: looking at the path may block."""
    mount = mountinfo.mount_at(path, mountinfo.own().known())
    return mount.point if mount else "/"

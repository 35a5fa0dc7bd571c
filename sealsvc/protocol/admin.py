"""Messages for those who look after the service: what is sealed by whom, what waits, how long
things take, its policy, and its jobs. Part of the control protocol (messages.py)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sealsvc.core.model import FileId, Operation
from sealsvc.protocol.base import Keyed, Limit, Name, Pid, Request

JobId = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
FileKey = Annotated[str, Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}-[0-9]{1,10}$")]


class _Overview(Request, frozen=True, kw_only=True):
    """Of what lies `below` one of these directories, if any are given."""

    below: list[Name] | None = None
    limit: Limit = 100


class Files(_Overview, frozen=True, kw_only=True, tag="files"):
    """Files with live seals, in order of their key, after `after`; only `path`, if given. Answer:
    FilePage."""

    path: Name | None = None
    key: FileKey | None = None
    after: FileKey | None = None


class Holders(_Overview, frozen=True, kw_only=True, tag="holders"):
    """Processes with live seals, in order of pid, after pid `after`. Answer: HolderPage."""

    pid: Pid | None = None
    after: Annotated[int, Meta(ge=0)] | None = None


class Conflicts(_Overview, frozen=True, kw_only=True, tag="conflicts"):
    """Operations that wait for a seal at this moment, the longest first; of the asking user alone,
    unless it is an operator. Answer: ConflictPage."""


class Alarms(_Overview, frozen=True, kw_only=True, tag="alarms"):
    """Alarms of this boot, the newest first; with `open` those that nobody has acknowledged. With
    `below`, those that concern files there. Answer: AlarmPage."""

    open: bool = False


class AcknowledgeAlarm(Keyed, frozen=True, kw_only=True, tag="acknowledge-alarm"):
    """Somebody (Request.principal, else the asking user) has seen this alarm. Answer: AlarmInfo."""

    alarm: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    below: list[Name] | None = None


class Measures(Request, frozen=True, tag="measures"):
    """Counts and distributions since the start of the service. Answer: MeasuresReport."""


class ShowPolicy(Request, frozen=True, tag="policy"):
    """The policy in force. Answer: PolicyReport."""


class CheckPolicy(Request, frozen=True, tag="check-policy"):
    """Would this text be a configuration, and what would change? Nothing is changed. Answer:
    PolicyReport."""

    text: Annotated[str, Meta(max_length=48 * 1024)]


class ReloadPolicy(Keyed, frozen=True, tag="reload-policy"):
    """Read the configuration file again and take its [policy] over. Answer: PolicyReport; refused,
    with everything as it was, when the file is not a configuration."""


class JobKind(StrEnum):
    """What a job does: audit every map, run the doctor, relocate a file, copy."""

    AUDIT = "audit"
    DOCTOR = "doctor"
    RELOCATE = "relocate"
    COPY = "copy"


class JobState(StrEnum):
    """How a job stands. `interrupted`: the service ended during it."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class StartJob(Keyed, frozen=True, tag="start-job"):
    """Begin what takes long: an `audit` of every seal, or the `doctor` on a file system, in a
    scratch directory below `path`. One of each kind at a time. Answer: JobInfo."""

    kind: JobKind
    path: Name | None = None


class ShowJob(Request, frozen=True, tag="job"):
    """How far a job is. Answer: JobInfo."""

    job: JobId


class Jobs(Request, frozen=True, tag="jobs"):
    """Jobs that run, and the newest of those that are over. Answer: JobList."""


class CancelJob(Request, frozen=True, tag="cancel-job"):
    """Cancel a job that runs; one that had ended stays as it was. Answer: JobInfo."""

    job: JobId


class Coverage(Request, frozen=True, tag="coverage"):
    """What the doctor measured last on the file system of `path` in this run of the service. With
    `below`, the path must lie below one of these directories. Answer: CoverageReport; rows
    [start, start + limit)."""

    path: Name
    below: list[Name] | None = None
    start: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = 1000


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """Live seals together: their number, the bytes of their ranges, and their number by state."""

    seals: int
    sealed_bytes: int
    states: dict[str, int]


class FileInfo(Sealed, frozen=True, kw_only=True):
    """`key` names the file while it has a seal."""

    key: str
    file: FileId
    path: str
    filesystem: str
    mount: str


class FilePage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="files"):
    """`next` is the `after` of the next page; null on the last."""

    files: list[FileInfo]
    next: str | None = None


class HolderInfo(Sealed, frozen=True, kw_only=True):
    """`start_time` as in Holder; `started_at` is that in seconds of the Unix epoch."""

    pid: int
    start_time: int
    uid: int
    comm: str
    alive: bool
    started_at: float | None = None


class HolderPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="holders"):
    """`next` is the `after` of the next page; null on the last."""

    holders: list[HolderInfo]
    next: int | None = None


class WaitingConflict(msgspec.Struct, frozen=True, kw_only=True):
    """`waits` is how long it has waited, in seconds."""

    enforcer: str
    operation: Operation
    path: str
    seals: list[str]
    waits: float


class ConflictPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="conflicts"):
    """Those of the `total` that a message has room for."""

    conflicts: list[WaitingConflict]
    total: int


class AlarmInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="alarm"):
    """`name` is the event's (alarm or drift); `count` of them came, the `first` and the `last` at
    these seconds of the Unix epoch. `seal` and `path` are empty where it concerns none."""

    id: str
    name: str
    reason: str
    seal: str
    path: str
    first: float
    last: float
    count: int
    acknowledged_by: str = ""
    acknowledged_at: float | None = None


class AlarmPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="alarms"):
    """`total` there are, `open` of them nobody has acknowledged; `dropped` open ones had to make
    room for others."""

    alarms: list[AlarmInfo]
    total: int
    open: int
    dropped: int


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution in seconds: `counts[i]` observations were at most `bounds[i]`, the last beyond
    all bounds."""

    bounds: list[float]
    counts: list[int]
    sum: float


class MeasuresReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="measures"):
    """`counters` and `gauges` are by name and label ("conflicts", "held"), `latencies`, in seconds,
    by what was timed: grant, return, recall (to the end of the seal), conflict (the wait of an
    operation)."""

    run: str
    counters: dict[str, dict[str, int]]
    latencies: dict[str, Histogram]
    gauges: dict[str, dict[str, float]]


class PolicyReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="policy"):
    """`changed` names the keys of [policy] that differ from those in force before, `restart` the
    keys elsewhere that only a restart would take over."""

    source: str
    policy: dict[str, Any]
    changed: list[str] = []
    restart: list[str] = []


class JobInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="job"):
    """`done` of `total` steps; `total` 0: not known yet. `source` is what a copy to `path` reads.
    Times are seconds of the Unix epoch. State `interrupted`: the service ended during the job;
    `error` says how, and `ended_at` is when the service stopped, or the next one found it."""

    id: str
    kind: JobKind
    state: JobState
    path: str | None = None
    source: str | None = None
    principal: str
    started_at: float
    ended_at: float | None = None
    done: int = 0
    total: int = 0
    step: str = ""
    error: str = ""
    result: dict[str, Any] = {}


class JobList(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="jobs"):
    """Jobs, the newest first."""

    jobs: list[JobInfo]


class CoverageRow(msgspec.Struct, frozen=True, kw_only=True):
    """As `sealctl doctor` has it."""

    operation: str
    kind: str
    conflict: str
    enforcer: str
    result: str
    errno: str | None = None
    map_changed: bool = False
    note: str = ""


class CoverageReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="coverage"):
    """`measured_at` is in seconds of the Unix epoch; null: the doctor was not run on it."""

    mount: str
    measured_at: float | None = None
    rows: list[CoverageRow]
    next: int | None = None


class Redeem(Keyed, frozen=True, tag="redeem"):
    """Turn a claim into the seal that was asked for, with the caller as its holder. A claim is
    redeemed once. Answer: SealInfo, with the sealed descriptor beside it."""

    claim: Annotated[str, Meta(min_length=16, max_length=128)]


class ClaimInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="claim"):
    """`claim` is a secret: whoever shows it to the service, within `expires_in` seconds and as one
    of the users `uids` (null: any), is granted the seal."""

    claim: str
    expires_in: float
    uids: list[int] | None = None


AnyRequest = (
    Files
    | Holders
    | Conflicts
    | Alarms
    | AcknowledgeAlarm
    | Measures
    | ShowPolicy
    | CheckPolicy
    | ReloadPolicy
    | StartJob
    | ShowJob
    | Jobs
    | CancelJob
    | Coverage
    | Redeem
)
Result = (
    FilePage
    | HolderPage
    | ConflictPage
    | AlarmInfo
    | AlarmPage
    | MeasuresReport
    | PolicyReport
    | JobInfo
    | JobList
    | CoverageReport
    | ClaimInfo
)

"""One example of each thing the API takes and gives: typed here, shown in openapi.json."""

from __future__ import annotations

import msgspec

from sealsvc.core.model import (
    ByteRange,
    Conflict,
    Drift,
    Fence,
    FileId,
    Gap,
    Holder,
    IoMode,
    Kind,
    Operation,
    Requirements,
    State,
)
from sealsvc.exports.info import ExportInfo, ExportList
from sealsvc.exports.stats import BUCKETS, RequestTimes, Stats
from sealsvc.exports.timeouts import Timeouts
from sealsvc.protocol.admin import (
    AlarmInfo,
    AlarmPage,
    ClaimInfo,
    ConflictPage,
    CoverageReport,
    CoverageRow,
    FileInfo,
    FilePage,
    Histogram,
    HolderInfo,
    HolderPage,
    JobInfo,
    JobKind,
    JobList,
    JobState,
    MeasuresReport,
    PolicyReport,
    WaitingConflict,
)
from sealsvc.protocol.copies import CopyTrustReport, CopyTrustRow
from sealsvc.protocol.events import Event
from sealsvc.protocol.exports import ExportStopped
from sealsvc.protocol.history import (
    AuditEntry,
    AuditTrail,
    Change,
    ConflictHistory,
    ConflictRecord,
    MapDifference,
    SealHistory,
    SealRecord,
    Transition,
    Transitions,
    Verification,
)
from sealsvc.protocol.seals import (
    Extent,
    ExtentPage,
    MappingReport,
    RecallOutcome,
    RecallReport,
    SealInfo,
    SealPage,
)
from sealsvc.protocol.system import (
    AuditReport,
    EnforcerInfo,
    FilesystemInfo,
    FilesystemList,
    PmemRegion,
    ServiceStatus,
)
from sealsvc_api.access import Action
from sealsvc_api.schemas import (
    AuditBody,
    ClaimBody,
    CopyBody,
    DowngradeBody,
    GrantBody,
    Health,
    JobBody,
    LoginBody,
    PolicyBody,
    RecallBody,
    RelocationBody,
    RenewBody,
    ReturnBody,
    SessionInfo,
    ValidationBody,
    VersionInfo,
)

ID = "65f0c0ffee5ea15e00000001"
PATH = "/srv/pmem/volume-7.img"
MIB = 1024 * 1024

SEAL = SealInfo(
    id=ID,
    seqid=2,
    state=State.ACTIVE,
    file=FileId(device=66304, inode=4711, generation=1),
    path=PATH,
    filesystem="/srv/pmem",
    range=ByteRange(0, 64 * MIB),
    effective=ByteRange(0, 64 * MIB),
    iomode=IoMode.RW,
    kind=Kind.EXCLUSIVE,
    conflict=Conflict.WAIT,
    fence=Fence.NONE,
    grace=10.0,
    ttl=0.0,
    tag="nic-0",
    require=Requirements(),
    enforcers=["fanotify", "lease"],
    accepted_risks=[],
    holder=Holder(pid=4242, start_time=98765, uid=1000, comm="rdma-target"),
    extents=1,
    granted_at=1767225600.0,
    state_since=1767225600.5,
    owner="alice",
)
RETURNED = msgspec.structs.replace(SEAL, state=State.RETURNED, seqid=3)
PAGE = SealPage(seals=[SEAL], next=ID)
EXTENTS = ExtentPage(
    extents=[Extent(logical=0, physical=8 * MIB, length=64 * MIB, flags=["last"])], total=1
)
MAPPING = MappingReport(
    seal=ID,
    seqid=2,
    state=State.ACTIVE,
    vmas=1,
    pages=16384,
    present=16384,
    huge_pages=32,
    pfn_checked=16384,
    method="pagemap-scan",
    dax=True,
    notes=[],
)
ALARM = AlarmInfo(
    id="5d1f2e0c9a7b3346",
    name="alarm",
    reason="an overlay is mounted over a sealed file",
    seal=ID,
    path=PATH,
    first=1767225600.0,
    last=1767225660.0,
    count=2,
    acknowledged_by="alice",
    acknowledged_at=1767225700.0,
)
ALARMS = AlarmPage(alarms=[ALARM], total=1, open=0, dropped=0)
NO_TIMES = RequestTimes(count=0, total=0, longest=0, buckets=[0] * BUCKETS)
TIMES = {"count": 8.0, "p50": 8.4, "p99": 16.8, "longest": 12.1}
EXPORT = ExportInfo(
    name="disk",
    driver="nbd",
    state="serving",
    device="nbd+unix:///?socket=/run/sealsvc-exports/disk.sock",
    file=PATH,
    pid=4711,
    seal=ID,
    why="",
    paused_for=0.0,
    timeouts=Timeouts(recall=10.0, patience=0.0, initiator=30.0, whose="NBD clients"),
    pauses=TIMES,
    latency={"read": TIMES},
    counters=Stats(
        state="serving",
        pid=4711,
        in_flight=1,
        device_size=MIB,
        seals=9,
        errors=0,
        paused_for=0.0,
        seal=ID,
        why="",
        bytes={"read": 32768},
        latency={"read": NO_TIMES},
        pauses=NO_TIMES,
        refusals=0,
    ),
    details={},
)
EXPORTS = ExportList(exports=[EXPORT])
EXPORT_STOPPED = ExportStopped(
    name=EXPORT.name, driver=EXPORT.driver, device=EXPORT.device, file=EXPORT.file
)
RECALLS = RecallReport(recalled=[RecallOutcome(seal=ID, state=State.RETURNED)])
DRIFT = Drift(seal=ID, path=PATH, logical=MIB, expected="9437184+4096", found="hole")
AUDIT = AuditReport(checked=1, drifted=[DRIFT], unreadable=[])
FILESYSTEM = FilesystemInfo(
    mount="/srv/pmem",
    type="xfs",
    device="/dev/pmem0",
    block_size=4096,
    reflink=False,
    dax=True,
    enforcers=["fanotify", "lease"],
    supported=True,
    reason="",
    gaps=[Gap(risk="open-before-mark", kinds=[Kind.SHARED], why="opened before the mark")],
    seals=1,
    pmem=PmemRegion(start=4 << 30, length=16 << 30),
)
FILESYSTEMS = FilesystemList(filesystems=[FILESYSTEM])
STATUS = ServiceStatus(
    version="0.1.0",
    protocol=1,
    pid=812,
    uptime=3600.0,
    simulated=False,
    kernel="6.14.0",
    roots=["/srv/pmem"],
    enforcers=[EnforcerInfo(name="bpf", available=False, reason="the kernel has no BPF LSM")],
    seals={"active": 1},
    conflicts_waiting=0,
    connections=2,
    counters={"grants": 1},
    run="5f3a91c2",
)
EVENT = Event(
    seq=17,
    time=1767225610.0,
    name="state",
    seal=ID,
    path=PATH,
    data={"from": "active", "to": "recalled", "reason": "maintenance", "seqid": 3},
)
FILE = FileInfo(
    key="66304-4711-1",
    file=SEAL.file,
    path=PATH,
    filesystem="xfs",
    mount="/srv/pmem",
    seals=1,
    sealed_bytes=64 * MIB,
    states={"active": 1},
)
FILES = FilePage(files=[FILE])
HOLDER = HolderInfo(
    pid=4242,
    start_time=98765,
    started_at=1767225600.0,
    uid=1000,
    comm="rdma-target",
    alive=True,
    seals=1,
    sealed_bytes=64 * MIB,
    states={"active": 1},
)
HOLDERS = HolderPage(holders=[HOLDER])
CONFLICTS = ConflictPage(
    conflicts=[
        WaitingConflict(
            enforcer="fanotify",
            operation=Operation("fallocate-punch-hole", 4096, 65536, 7001, 7001, "fallocate", 0),
            path=PATH,
            seals=[ID],
            waits=1.25,
        )
    ],
    total=1,
)
POLICY = PolicyReport(
    source="/etc/sealsvc/sealsvc.toml",
    policy={"roots": ["/srv/pmem"], "max_grace": 300.0},
    changed=["max_grace"],
    restart=["service.workers"],
)
JOB = JobInfo(
    id="00c0ffee00c0ffee",
    kind=JobKind.AUDIT,
    state=JobState.DONE,
    path=None,
    principal="alice",
    started_at=1767225600.0,
    ended_at=1767225601.0,
    done=1,
    total=1,
    result={"checked": 1, "drifted": [], "unreadable": []},
)
JOBS = JobList(jobs=[JOB])
COPY = JobInfo(
    id="00c0ffee00c0ffef",
    kind=JobKind.COPY,
    state=JobState.DONE,
    path="/srv/pmem/db.new",
    source=PATH,
    principal="alice",
    started_at=1767225600.0,
    ended_at=1767225601.0,
    done=1048576,
    total=1048576,
    step="clone",
    result={
        "requested": 1048576,
        "done": 1048576,
        "whole": True,
        "durable": True,
        "rows": [{"source": 0, "destination": 0, "length": 1048576, "strategy": "clone"}],
        "bytes_by_strategy": {"clone": 1048576},
        "source_changed": False,
    },
)
COPIES = JobList(jobs=[msgspec.structs.replace(COPY, result={})])
COPY_TRUST = CopyTrustReport(
    rows=[
        CopyTrustRow(
            pair="5f3a91c2>5f3a91c2", strategy="lower", self_test="verified", at=1767225600.0
        )
    ]
)
COVERAGE = CoverageReport(
    mount="/srv/pmem",
    measured_at=1767225600.0,
    rows=[
        CoverageRow(
            operation="fallocate-punch-hole",
            kind="exclusive",
            conflict="wait",
            enforcer="fanotify",
            result="waits",
        )
    ],
)
MEASURES = MeasuresReport(
    run="5f3a91c2",
    counters={"conflicts": {"held": 2}, "events": {"drift": 0}},
    latencies={"grant": Histogram(bounds=[0.001, 0.01], counts=[3, 1, 0], sum=0.005)},
    gauges={"queue": {"grants": 0.0}},
)
RECORD = SealRecord(
    id=ID,
    boot="5f3a91c2-0000-4000-8000-000000000000",
    file=SEAL.file,
    path=PATH,
    filesystem="xfs",
    range=SEAL.range,
    effective=SEAL.effective,
    kind="exclusive",
    iomode="rw",
    conflict="wait",
    fence="none",
    holder_pid=4242,
    holder_start=98765,
    holder_uid=1000,
    holder_comm="rdma-target",
    asker_pid=4242,
    asker_uid=1000,
    tag="nic-0",
    enforcers=["fanotify"],
    granted_at=1767225600.0,
    ended_at=1767225700.0,
    state="returned",
    reason="",
    mapped=True,
)
HISTORY = SealHistory(seals=[RECORD], next="41")
STEPS = Transitions(
    seal=ID,
    transitions=[
        Transition(seqid=2, time=1767225600.5, before="granted", after="active", reason="")
    ],
)
PAST_CONFLICTS = ConflictHistory(
    conflicts=[
        ConflictRecord(
            time=1767225610.0,
            operation="fallocate-punch-hole",
            offset=4096,
            length=65536,
            pid=7001,
            tid=7001,
            comm="fallocate",
            uid=0,
            detail="",
            seals=[ID],
            verdict="held",
            error=0,
            ended_at=1767225611.0,
            result=0,
            waited=1.0,
        )
    ],
    next="7",
)
CHANGES = MapDifference(
    seal=ID,
    range=SEAL.effective,
    changes=[Change(range=ByteRange(0, 4096), expected="8388608+4096", found="hole")],
    total=1,
    changed=4096,
)
TRAIL = AuditTrail(
    entries=[
        AuditEntry(
            seq=41, time=1767225600.0, kind="granted", seal=ID, data={"path": PATH}, hash="00" * 32
        )
    ],
    next="40",
)
VERIFICATION = Verification(
    intact=False, first=1, last=41, first_bad=7, why="the hash does not fit", head="00" * 32
)
CLAIM = ClaimInfo(claim="N0tAReal-Claim0123456789", expires_in=60.0, uids=[1000])
VERSION = VersionInfo(version="0.1.0", api="1.0", protocol=1, run="5f3a91c2")
SESSION = SessionInfo(
    name="alice",
    role="viewer",
    how="session",
    actions=[str(Action.STATUS)],
    scopes=["/srv/pmem"],
    csrf="N0tAReal-Csrf-Token",
)
ALIVE = Health(status="alive")
READY = Health(status="ready")

GRANT_BODY = msgspec.convert(
    {"path": PATH, "length": 64 * MIB, "tag": "nic-0", "holder": {"pid": 4242}}, GrantBody
)
RECALL_BODY = msgspec.convert({"seal": ID, "wait": True, "reason": "maintenance"}, RecallBody)
VALIDATION_BODY = msgspec.convert({"address": 0x7F0000000000}, ValidationBody)
AUDIT_BODY = msgspec.convert({"seal": ID}, AuditBody)
RETURN_BODY = msgspec.convert({"range": {"offset": 0, "length": MIB}}, ReturnBody)
RENEW_BODY = msgspec.convert({"ttl": 600.0}, RenewBody)
DOWNGRADE_BODY = msgspec.convert({}, DowngradeBody)
CLAIM_BODY = msgspec.convert({"path": PATH, "seconds": 30.0}, ClaimBody)
POLICY_BODY = msgspec.convert({"text": "[policy]\nmax_grace = 60.0\n"}, PolicyBody)
JOB_BODY = msgspec.convert({"kind": "audit"}, JobBody)
RELOCATION = JobInfo(
    id="00c0ffee00c0fff0",
    kind=JobKind.RELOCATE,
    state=JobState.DONE,
    path=PATH,
    principal="alice",
    started_at=1767225600.0,
    ended_at=1767225601.0,
    done=1048576,
    total=1048576,
    result={
        "moved": True,
        "before": {"extents": 16, "first": 98304},
        "after": {"extents": 1, "first": 16777216},
        "tracking": "trace",
        "pauses": [0.031],
    },
)
RELOCATION_BODY = msgspec.convert({"path": PATH, "goal": {"defrag": True}}, RelocationBody)
COPY_BODY = msgspec.convert({"source": PATH, "destination": "/srv/pmem/db.new"}, CopyBody)
LOGIN_BODY = msgspec.convert({"token": "N0tAReal-Token"}, LoginBody)

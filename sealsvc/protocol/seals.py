"""Messages about seals: asking for one, giving it back, looking at it, recalling it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.core.model import (
    DEFAULT_GRACE,
    ByteRange,
    Conflict,
    Fence,
    FenceClass,
    FileId,
    Holder,
    IoMode,
    Kind,
    Operation,
    Preparation,
    Requirements,
    RingPlace,
    State,
)
from sealsvc.protocol.base import (
    VERSION,
    Keyed,
    Length,
    Limit,
    Name,
    Offset,
    Pid,
    Request,
    SealId,
    Seconds,
    Uid,
)


class HolderSpec(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """A holder other than the caller. By `pid` (policy decides who may name whom), optionally with
    the number `fd` of that process's own descriptor of the file; or, with `pidfd` true, by a
    pidfd that is the last descriptor sent with the request (a child of the caller's user)."""

    pid: Pid | None = None
    fd: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    pidfd: bool = False


class Conditions(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True
):
    """What must hold for a grant, beside the service's policy; asked for by a front that answers
    for others, and judged here, where nothing can change in between. The file lies `below` one of
    these directories; the holder is a process of one of the users `uids`. Whatever does not fit is
    answered as if it did not exist."""

    below: list[Name] | None = None
    uids: list[int] | None = None


class Terms(Keyed, frozen=True, kw_only=True):
    """Which seal is wanted. Without offset and length the range is the whole file. `grace` is the
    time a recall leaves the holder, `ttl` the life of the seal (0: unlimited); seconds."""

    path: Name | None = None
    offset: Offset = 0
    length: Length | None = None
    iomode: IoMode = IoMode.RW
    kind: Kind = Kind.EXCLUSIVE
    conflict: Conflict = Conflict.WAIT
    fence: Fence = Fence.NONE
    grace: Seconds = DEFAULT_GRACE
    ttl: Seconds = 0.0
    tag: Annotated[str, Meta(max_length=256)] = ""
    require: Requirements = Requirements()
    prepare: list[Preparation] = msgspec.field(default_factory=list)
    only: Conditions = Conditions()


class Grant(Terms, frozen=True, tag="grant"):
    """Ask for a seal, by `path` or by the descriptor sent with the request. Answer: SealInfo, with
    the sealed descriptor beside it when the request was by path and the caller itself (or its
    pidfd child) holds it."""

    holder: HolderSpec = HolderSpec()


class IssueClaim(Terms, frozen=True, tag="issue-claim"):
    """Ask for a claim: a secret with which another process takes up the seal within `seconds`
    (Redeem), by `path`. Only operators may. Answer: ClaimInfo."""

    seconds: Annotated[float, Meta(gt=0, le=3600)] = 60.0


class Return(Keyed, frozen=True, tag="return"):
    """Give a seal back (LAYOUTRETURN): close and unmap first. Refused with `still-mapped` while
    any mapping of the range is left. Answer: SealInfo in state returned.

    With `range`, a part at one end of the sealed range is given back: unmap that part; the seal
    stays for the rest, unless what a recall wanted was all that is given back."""

    seal: SealId
    seqid: int | None = None
    range: ByteRange | None = None


class Downgrade(Keyed, frozen=True, tag="downgrade"):
    """The holder of a seal with iomode rw will only read from now on. Refused with `still-mapped`
    while it maps the range writably. Answer: SealInfo."""

    seal: SealId
    seqid: int | None = None


class Renew(Keyed, frozen=True, tag="renew"):
    """The holder is still there: the seal's ttl begins anew (with `ttl` seconds, if given; 0: it
    has no end any more). Answer: SealInfo."""

    seal: SealId
    seqid: int | None = None
    ttl: Seconds | None = None


class RecallProgress(Request, frozen=True, tag="recall-progress"):
    """The holder is about to give a recalled seal back and needs longer: the deadline is `grace`
    seconds from now again, but never later than policy.max_recall after the recall began. Answer:
    SealInfo."""

    seal: SealId
    seqid: int | None = None


class Forgotten(Request, frozen=True, tag="forgotten"):
    """The answer to a recall by a holder that knows no such seal (NFS4ERR_NOMATCHING_LAYOUT): it
    counts as returned once it is proven that nothing of the range is mapped. Answer: SealInfo,
    still recalled where the proof takes longer."""

    seal: SealId


class Reclaim(Request, frozen=True, tag="reclaim"):
    """Have this connection receive the recalls of a seal from now on: after the service was
    restarted, or the connection lost. A recall that is under way is pushed at once. Refused while
    the connection that has it is open. Answer: SealInfo."""

    seal: SealId


class Mapped(Request, frozen=True, tag="mapped"):
    """The holder has mapped the seal's range: prove that the mapping is as `require` of the grant
    wants it, page by page, whereupon a granted seal becomes active. `address` is where the first
    byte of the range stands (null: every shared mapping of the range in the holder is looked at).
    Refused with `mapping-invalid`, which changes nothing. Answer: MappingReport."""

    seal: SealId
    address: Annotated[int, Meta(ge=1, le=2**62)] | None = None
    seqid: int | None = None


class Show(Request, frozen=True, tag="show"):
    """One seal, also one that is over while it is remembered. Answer: SealInfo."""

    seal: SealId


class List(Request, frozen=True, tag="list"):
    """Live seals in order of id, after `after`; `below` are directories, `owner` is whom the seal
    was asked for (Request.principal), `search` a part of id, path, tag or the holder's name.
    Answer: SealPage."""

    path: Name | None = None
    state: State | None = None
    pid: Pid | None = None
    uid: Uid | None = None
    kind: Kind | None = None
    tag: str | None = None
    owner: str | None = None
    filesystem: Name | None = None
    below: list[Name] | None = None
    search: Annotated[str, Meta(max_length=256)] | None = None
    after: SealId | None = None
    limit: Limit = 100


class Extents(Request, frozen=True, tag="extents"):
    """The extent map recorded at grant, extents [start, start + limit); of a seal that is over, as
    long as the registry has it. With `now`, that of this moment. Answer: ExtentPage."""

    seal: SealId
    now: bool = False
    start: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = 500


class RecallSeals(Keyed, frozen=True, tag="recall"):
    """Recall every live seal in exactly one scope: `seal`, `path` (with an optional range),
    `filesystem` (a path on it), `pid` (a holder), or `all`. `grace`, in seconds, replaces that of
    each seal. With `wait` the answer comes when the recalls have ended. With `any`, beside `pid`,
    the holder is asked for that many of its seals, of its own choice (CB_RECALL_ANY, RFC 8881
    section 20.6); those it still owes after the grace are chosen for it, the oldest first. With
    `below` a `path` must lie below one of these directories, and so must the files whose seals are
    recalled. Answer: RecallReport."""

    seal: SealId | None = None
    seqid: int | None = None
    path: Name | None = None
    range: ByteRange | None = None
    below: list[Name] | None = None
    filesystem: Name | None = None
    pid: Pid | None = None
    all: bool = False
    any: Annotated[int, Meta(ge=1)] | None = None
    grace: Seconds | None = None
    wait: bool = False
    reason: Annotated[str, Meta(max_length=256)] = ""


class LadderStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the way from a recall to the end of its fence: notify, overdue, signal, kill,
    failed, proof. `time` is seconds of the Unix epoch."""

    step: str
    time: float
    detail: str = ""


class SealInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="seal"):
    """A seal as it stands. `effective` is the range rounded out to whole blocks: what is truly
    held still. `fence_class` says what can be done against a holder that does not give it back
    (docs/fencing.md), `wanted` which part a recall wants, `ladder` what has been done, `owner`
    whom it was asked for (Request.principal). Times are seconds: `granted_at` and `state_since` of
    the Unix epoch, `deadline_in` and `expires_in` from now (null: none)."""

    id: str
    seqid: int
    state: State
    file: FileId
    path: str
    filesystem: str
    range: ByteRange
    effective: ByteRange
    iomode: IoMode
    kind: Kind
    conflict: Conflict
    fence: Fence
    grace: float
    ttl: float
    tag: str
    require: Requirements
    enforcers: list[str]
    accepted_risks: list[str]
    holder: Holder
    extents: int
    granted_at: float
    state_since: float
    deadline_in: float | None = None
    expires_in: float | None = None
    reason: str = ""
    fence_class: FenceClass = FenceClass.COOPERATIVE
    wanted: ByteRange | None = None
    ladder: list[LadderStep] = []
    owner: str = ""
    ring: RingPlace | None = None


class MappingReport(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mapping-report"
):
    """A mapping that was found as required, at the moment it was looked at. `pages` are what the
    `vmas` map of the range, `present` those that are there, `pfn_checked` those whose physical
    address was found to be the extent's (fsdax), all in pages of the system; `huge_pages` are of
    2 MiB. `method` is how pages were looked at: "pagemap-scan" or "pagemap". `notes` say what
    could not be proven, and why."""

    seal: str
    seqid: int
    state: State
    vmas: int
    pages: int
    present: int
    huge_pages: int
    pfn_checked: int
    method: str
    dax: bool
    notes: list[str]


class SealPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="seal-page"):
    """`next` is the `after` of the next page (null: this was the last)."""

    seals: list[SealInfo]
    next: str | None = None


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes; `physical` is an offset on the file system's device. `flags` are names of FIEMAP
    extent flags."""

    logical: int
    physical: int
    length: int
    flags: list[str]


class ExtentPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="extent-page"):
    """Extents in order of offset. `next` is the `start` of the next page; null on the last."""

    extents: list[Extent]
    total: int
    next: int | None = None


class RecallOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a recall of one seal began: its state, or why it was not recalled."""

    seal: str
    state: State


class RecallReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="recalls"):
    """`more` were recalled beside those that a message has room for; seals that are not over come
    first."""

    recalled: list[RecallOutcome]
    more: int = 0


class Recall(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="recall"):
    """CB_LAYOUTRECALL: give `seal` back within `grace` seconds, at least the part `wanted` of its
    `range`. `operation` is the conflict that caused it (null: an operator's request). `changed`
    (clora_changed) is true when the extent map is not the sealed one any more: the holder must not
    even flush through it. `state` is the seal's: one that is over (expired, revoked) tells that the
    seal has ended, and there is nothing to give back. With `quiesce` the file is to be relocated,
    and the holder may answer with Quiesce and keep the seal; then a Recall whose state is `granted`
    tells that it is over: the holder reads the map again (Extents) and goes on."""

    seal: str
    seqid: int
    tag: str
    range: ByteRange
    wanted: ByteRange
    grace: float
    reason: str
    fence: Fence
    state: State = State.RECALLED
    operation: Operation | None = None
    changed: bool = False
    quiesce: bool = False
    v: int = VERSION


class RecallAny(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="recall-any"):
    """CB_RECALL_ANY: give back `count` seals of process `pid`, whichever you can spare, within
    `grace` seconds."""

    pid: int
    count: int
    grace: float
    reason: str
    v: int = VERSION

"""What the registry is asked, what it records, and how it answers. Pages hold the newest first;
`next` is the cursor of the next page (null: this was the last). Times are seconds of the Unix
epoch."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sealsvc.core.model import ByteRange, FileId
from sealsvc.protocol.base import Limit, Pid, Request, SealId, Uid


class SealFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Null asks for any. `pid` and `uid` are the holder's; `since` and `until`, in seconds of the
    Unix epoch, choose the seals that lived at some time between; `part` is the beginning or the end
    of an id. Device and inode tell the file, whatever its generation."""

    path: str | None = None
    file: FileId | None = None
    pid: Pid | None = None
    uid: Uid | None = None
    state: str | None = None
    since: float | None = None
    until: float | None = None
    part: Annotated[str, Meta(pattern="^[0-9a-f]{1,24}$")] | None = None


# What the registry is asked. Who is no operator is told of its own seals alone.

Cursor = Annotated[str, Meta(pattern="^[0-9]{1,18}$")]


class _Paged(Request, frozen=True, kw_only=True):
    after: Cursor | None = None
    limit: Limit = 100


class _Between(_Paged, frozen=True, kw_only=True):
    since: float | None = None
    until: float | None = None


class History(_Paged, frozen=True, kw_only=True, tag="history"):
    """Seals, live and over, the newest first, from the cursor `after` on. Answer: SealHistory."""

    wanted: SealFilter = SealFilter()


class Steps(Request, frozen=True, tag="steps"):
    """Each step of a seal's life, in order. Answer: Transitions."""

    seal: SealId


class PastConflicts(_Between, frozen=True, kw_only=True, tag="past-conflicts"):
    """Operations that met a seal (or `seal`) between `since` and `until`, in seconds of the Unix
    epoch, the newest first. Answer: ConflictHistory."""

    seal: SealId | None = None
    pid: Pid | None = None


class MapChanges(Request, frozen=True, tag="map-changes"):
    """How the extent map of the file is now, compared with that at the grant of `seal`; at most
    `limit` stretches are told. Answer: MapDifference."""

    seal: SealId
    limit: Limit = 100


class Trail(_Between, frozen=True, kw_only=True, tag="trail"):
    """Entries of the audit trail between `since` and `until`, in seconds of the Unix epoch, the
    newest first; for operators. Answer: AuditTrail."""

    kind: Annotated[str, Meta(max_length=64)] | None = None
    seal: SealId | None = None


class VerifyTrail(Request, frozen=True, tag="verify-trail"):
    """Walk through the whole audit trail; for operators. Answer: Verification."""


class SealRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A seal, live or over. `ended_at` is null while it lives; `state` is the last that was known,
    and `boot` the boot id of the machine that granted it. `asker` is the peer that asked for it
    (null: not known); `mapped` says whether the map at grant is in the archive."""

    id: str
    boot: str
    file: FileId
    path: str
    filesystem: str
    range: ByteRange
    effective: ByteRange
    kind: str
    iomode: str
    conflict: str
    fence: str
    holder_pid: int
    holder_start: int
    holder_uid: int
    holder_comm: str
    asker_pid: int | None
    asker_uid: int | None
    tag: str
    enforcers: list[str]
    granted_at: float
    ended_at: float | None
    state: str
    reason: str
    mapped: bool


class SealHistory(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="seal-history"):
    """`next` is the cursor of the next page; null on the last."""

    seals: list[SealRecord]
    next: str | None = None


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a seal's state. `time` is in seconds of the Unix epoch; `before` is empty at the
    grant."""

    seqid: int
    time: float
    before: str
    after: str
    reason: str


class Transitions(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="transitions"):
    """In order of time; not paged: a seal has few."""

    seal: str
    transitions: list[Transition]


class ConflictRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict` is what the operation met (held, refused), `error` the errno it was refused with;
    `result` is the errno a held one got at last (0: it went on) after `waited` seconds, null while
    it waits and when its end was not seen."""

    time: float
    operation: str
    offset: int
    length: int
    pid: int
    tid: int
    comm: str
    uid: int
    detail: str
    seals: list[str]
    verdict: str
    error: int
    ended_at: float | None
    result: int | None
    waited: float | None


class ConflictHistory(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="conflict-history"
):
    """`next` is the cursor of the next page; null on the last."""

    conflicts: list[ConflictRecord]
    next: str | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """`data` depends on the kind; `hash` is the hex of the entry's link in the chain."""

    seq: int
    time: float
    kind: str
    seal: str | None
    data: Any
    hash: str


class AuditTrail(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="audit-trail"):
    """`next` is the cursor of the next page; null on the last."""

    entries: list[AuditEntry]
    next: str | None = None


class Verification(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="verification"):
    """Of the audit trail: entries `first` to `last` hang together. `first_bad` is the number of the
    first that does not, or is not there; `head` the hash of entry `last` in hex."""

    intact: bool
    first: int
    last: int
    first_bad: int | None
    why: str
    head: str


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch whose place, or flags, are not as recorded; told as of its first byte."""

    range: ByteRange
    expected: str
    found: str


class MapDifference(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="map-difference"
):
    """How the map of a seal's effective range differs from that at its grant: the first `changes`
    of `total` stretches, which are `changed` bytes together."""

    seal: str
    range: ByteRange
    changes: list[Change]
    total: int
    changed: int


RegistryRequest = History | Steps | PastConflicts | MapChanges | Trail | VerifyTrail
RegistryAnswer = (
    SealHistory | Transitions | ConflictHistory | MapDifference | AuditTrail | Verification
)

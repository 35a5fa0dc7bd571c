"""What the REST requests add to, or take from, the control protocol's messages.

Everything else is the protocol's own struct: one definition feeds the wire, the checks here and
openapi.json.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from fastapi import Path
from msgspec import Meta

from sealsvc.protocol import base
from sealsvc.protocol.admin import CheckPolicy, Coverage, Files, Holders, StartJob
from sealsvc.protocol.base import Limit, Name, Pid
from sealsvc.protocol.copies import StartCopy
from sealsvc.protocol.exports import StopExport
from sealsvc.protocol.integrity import PiAttach, PiBless, PiScrub, PiVerify
from sealsvc.protocol.relocation import Relocate
from sealsvc.protocol.seals import (
    Downgrade,
    Extents,
    Grant,
    IssueClaim,
    List,
    Mapped,
    RecallSeals,
    Renew,
    Return,
)
from sealsvc.protocol.system import Audit

# These belong to the control connection, and to what the API itself says of its callers.
_ENVELOPE = frozenset({"id", "v", "principal", "trace", "key", "only", "below"})


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is msgspec.NODEFAULT:
        return field.default
    return msgspec.field(default_factory=field.default_factory)


def _rest_of(
    kind: type[msgspec.Struct], name: str, *absent: str, **replaced: Any
) -> type[msgspec.Struct]:
    """A struct `name` with the fields of `kind`, but for those absent; `replaced` are required."""
    fields: list[Any] = []
    for field in msgspec.structs.fields(kind):
        if field.name in replaced:
            fields.append((field.name, replaced[field.name]))
        elif field.name not in _ENVELOPE and field.name not in absent:
            fields.append((field.name, field.type, _default(field)))
    made = msgspec.defstruct(
        name, fields, kw_only=True, frozen=True, forbid_unknown_fields=True, module=__name__
    )
    made.__doc__ = kind.__doc__
    return made


class RestHolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The process that holds the seal; `fd` is the number of its own descriptor of the file."""

    pid: Pid
    fd: Annotated[int, Meta(ge=0)] | None = None


GrantBody = _rest_of(Grant, "GrantBody", holder=RestHolder)
ClaimBody = _rest_of(IssueClaim, "ClaimBody", path=Name)
ReturnBody = _rest_of(Return, "ReturnBody", "seal", "seqid")
RenewBody = _rest_of(Renew, "RenewBody", "seal", "seqid")
DowngradeBody = _rest_of(Downgrade, "DowngradeBody", "seal", "seqid")
RecallBody = _rest_of(RecallSeals, "RecallBody", "seqid")
AuditBody = _rest_of(Audit, "AuditBody")
ValidationBody = _rest_of(Mapped, "ValidationBody", "seal", "seqid")
PolicyBody = _rest_of(CheckPolicy, "PolicyBody")
JobBody = _rest_of(StartJob, "JobBody")
PiAttachBody = _rest_of(PiAttach, "PiAttachBody")
PiVerifyBody = _rest_of(PiVerify, "PiVerifyBody", "attachment", "seal")
PiScrubBody = _rest_of(PiScrub, "PiScrubBody", "attachment", "seal")
PiBlessBody = _rest_of(PiBless, "PiBlessBody", "attachment", "seal")
RelocationBody = _rest_of(Relocate, "RelocationBody")
CopyBody = _rest_of(StartCopy, "CopyBody", source=Name, destination=Name)
ListQuery = _rest_of(List, "ListQuery")
ExtentsQuery = _rest_of(Extents, "ExtentsQuery", "seal")
FilesQuery = _rest_of(Files, "FilesQuery", "key")
HoldersQuery = _rest_of(Holders, "HoldersQuery", "pid")
CoverageQuery = _rest_of(Coverage, "CoverageQuery")
StopExportQuery = _rest_of(StopExport, "StopExportQuery", "name")


class AlarmsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    open: bool = False
    limit: Limit = 100


class ConflictsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    limit: Limit = 100


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`since` is the id to resume after, for a first request; Last-Event-ID goes before it."""

    since: Annotated[str, Meta(pattern=r"^([0-9a-f]{8}\.)?[0-9]{1,15}$")] | None = None


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    token: Annotated[str, Meta(min_length=1, max_length=512)]


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `csrf` is what a session's changes must send as X-CSRF-Token (null: the caller is
    not known by a session). `scopes` null: everything."""

    name: str
    role: str
    how: str
    actions: list[str]
    scopes: list[str] | None = None
    csrf: str | None = None


class VersionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`api` is the version of this interface, `protocol` that of the control socket."""

    version: str
    api: str
    protocol: int
    run: str


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is `alive` or `ready`."""

    status: str


SEAL_ID: str = get_args(base.SealId)[1].pattern
SealPath = Annotated[
    str, Path(pattern=SEAL_ID, description="A seal's id", examples=["65f0c0ffee5ea15e00000001"])
]


def fields(struct: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(struct)


FilePath = Annotated[
    str,
    Path(
        pattern=r"^[0-9]{1,20}-[0-9]{1,20}-[0-9]{1,10}$",
        description="A file's key",
        examples=["66304-4711-1"],
    ),
]
PidPath = Annotated[int, Path(ge=1, le=2**31 - 1, description="A holder's pid", examples=[4242])]
JobPath = Annotated[
    str, Path(pattern="^[0-9a-f]{16}$", description="A job's id", examples=["00c0ffee00c0ffee"])
]

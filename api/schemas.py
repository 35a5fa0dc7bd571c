"""What the REST requests add to, or take from, the control protocol's messages.

Everything else is the protocol's own struct: one definition feeds the wire, the checks here and
openapi.json.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from fastapi import Path
from msgspec import Meta

from sealsvc import messages
from sealsvc.messages import Audit, Extents, Grant, List, Mapped, RecallSeals

# id and v belong to the control connection, not to a caller.
_ENVELOPE = frozenset({"id", "v"})


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

    pid: Annotated[int, Meta(ge=1)]
    fd: Annotated[int, Meta(ge=0)] | None = None


GrantBody = _rest_of(Grant, "GrantBody", holder=RestHolder)
RecallBody = _rest_of(RecallSeals, "RecallBody")
AuditBody = _rest_of(Audit, "AuditBody")
ValidationBody = _rest_of(Mapped, "ValidationBody", "seal")
ListQuery = _rest_of(List, "ListQuery")
ExtentsQuery = _rest_of(Extents, "ExtentsQuery", "seal")


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`since` is the id to resume after, for a first request; Last-Event-ID goes before it."""

    since: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is `alive` or `ready`."""

    status: str


_SEAL_ID = get_args(messages.SealId)[1].pattern
SealPath = Annotated[
    str, Path(pattern=_SEAL_ID, description="A seal's id", examples=["65f0c0ffee5ea15e00000001"])
]


def fields(struct: msgspec.Struct) -> dict[str, Any]:
    return msgspec.structs.asdict(struct)

"""/v1/history and /v1/trail: what became of seals, of the maps they held, and who did what."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from msgspec import Meta

from sealsvc.client import Reply
from sealsvc.core.model import State
from sealsvc.protocol.base import Limit, Name
from sealsvc.protocol.history import (
    AuditTrail,
    ConflictHistory,
    Cursor,
    History,
    MapChanges,
    PastConflicts,
    SealFilter,
    SealHistory,
    Steps,
    Trail,
    VerifyTrail,
)
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer, paged
from sealsvc_api.auth import Asking
from sealsvc_api.connection import PATIENT, Daemon, expect
from sealsvc_api.operations import CHANGING, GUARDED, LINK, operation
from sealsvc_api.schemas import NoQuery, SealPath, fields
from sealsvc_api.scope import asked_by, refuse_unseen

router = APIRouter(tags=["history"])
NOTHING = Depends(inputs.query(NoQuery))

CODES = (*GUARDED, "no-such-seal", "io-error")

P = TypeVar("P", SealHistory, ConflictHistory, AuditTrail)


class _Paged(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    since: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    until: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    after: Cursor | None = None
    limit: Limit = 100


class PastQuery(_Paged, frozen=True, kw_only=True):
    pid: Annotated[int, Meta(ge=1, le=2**31)] | None = None


class HistoryQuery(PastQuery, frozen=True, kw_only=True):
    """`since` and `until` (seconds of the Unix epoch) choose the seals that lived between."""

    path: Name | None = None
    uid: Annotated[int, Meta(ge=0, le=2**32)] | None = None
    state: State | None = None
    part: Annotated[str, Meta(pattern="^[0-9a-f]{1,24}$")] | None = None


class TrailQuery(_Paged, frozen=True, kw_only=True):
    kind: Annotated[str, Meta(max_length=64)] | None = None


class ChangesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    limit: Limit = 100


async def _gathered(
    asking: Callable[..., Awaitable[Reply]], kind: type[P], rows: str, asked: dict[str, Any]
) -> P:
    """A page of as many `rows` as `limit` allows, of several messages of the control socket."""
    found: list[Any] = []
    while True:
        page = expect(await asking(**asked), kind)
        found += getattr(page, rows)
        left = asked["limit"] - len(getattr(page, rows))
        if page.next is None or left <= 0:
            return msgspec.structs.replace(page, **{rows: found})
        asked = {**asked, "after": page.next, "limit": left}


@router.get(
    "/history",
    summary="Seals, live and over, the newest first",
    **operation(Action.TRAIL, examples.HISTORY, query=HistoryQuery, codes=CODES, headers=LINK),
)
async def seals(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(HistoryQuery))],
) -> Response:
    asked = fields(query)
    page = {name: asked.pop(name) for name in ("after", "limit")}
    state = asked.pop("state")
    wanted = SealFilter(**asked, state=None if state is None else str(state))
    asking = functools.partial(daemon.call, History, wanted=wanted, **asked_by(caller))
    return paged(request, await _gathered(asking, SealHistory, "seals", page))


@router.get(
    "/history/conflicts",
    summary="Operations that met a seal, the newest first",
    **operation(Action.TRAIL, examples.PAST_CONFLICTS, query=PastQuery, codes=CODES, headers=LINK),
)
async def conflicts(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(PastQuery))],
) -> Response:
    asking = functools.partial(daemon.call, PastConflicts, **asked_by(caller))
    return paged(request, await _gathered(asking, ConflictHistory, "conflicts", fields(query)))


@router.get(
    "/seals/{seal}/history",
    summary="Each step of a seal's life, in order",
    dependencies=[NOTHING],
    **operation(Action.SEALS_READ, examples.STEPS, codes=CODES),
)
async def steps(daemon: Daemon, caller: Asking, seal: SealPath) -> Response:
    await refuse_unseen(daemon, caller, seal)
    return answer((await daemon.call(Steps, seal=seal, **asked_by(caller))).result)


@router.get(
    "/seals/{seal}/changes",
    summary="How the file's extent map is now, compared with that at the seal's grant",
    **operation(
        Action.SEALS_READ,
        examples.CHANGES,
        query=ChangesQuery,
        codes=(*CODES, "no-such-file", "outside-roots", "not-a-regular-file"),
    ),
)
async def changes(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ChangesQuery))],
) -> Response:
    await refuse_unseen(daemon, caller, seal)
    asked = {**fields(query), **asked_by(caller)}
    return answer((await daemon.call(MapChanges, seal=seal, **asked)).result)


@router.get(
    "/trail",
    summary="Entries of the audit trail, the newest first",
    **operation(Action.TRAIL, examples.TRAIL, query=TrailQuery, codes=CODES, headers=LINK),
)
async def trail(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(TrailQuery))],
) -> Response:
    asking = functools.partial(daemon.call, Trail, **asked_by(caller))
    return paged(request, await _gathered(asking, AuditTrail, "entries", fields(query)))


@router.post(
    "/trail/verification",
    summary="Walk through the whole audit trail",
    dependencies=[NOTHING],
    **operation(Action.TRAIL, examples.VERIFICATION, codes=(*CHANGING, "io-error")),
)
async def verify(daemon: Daemon, caller: Asking) -> Response:
    return answer((await daemon.call(VerifyTrail, PATIENT, **asked_by(caller))).result)

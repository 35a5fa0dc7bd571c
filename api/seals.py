"""/v1/seals and /v1/claims"""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.routing import Route

from api import examples, inputs
from api.access import Action
from api.answers import answer
from api.auth import Asking, admit
from api.connection import PATIENT, Connection, Daemon
from api.etags import etag, none_match, required_seqids
from api.operations import CHANGING, GUARDED, KEY, header, operation, taken
from api.schemas import (
    SEAL_ID,
    ClaimBody,
    DowngradeBody,
    ExtentsQuery,
    GrantBody,
    ListQuery,
    NoQuery,
    RenewBody,
    ReturnBody,
    SealPath,
    ValidationBody,
    fields,
)
from api.scope import (
    GivenKey,
    asked_by,
    changeable,
    conditions,
    path_in_scope,
    seal_in_scope,
)
from sealsvc.errors import Refusal
from sealsvc.messages import (
    AnyRequest,
    Downgrade,
    Extents,
    Grant,
    HolderSpec,
    IssueClaim,
    List,
    Mapped,
    Renew,
    Return,
    SealInfo,
    SealPage,
    Show,
)

router = APIRouter(tags=["seals"])

ETAG = {"ETag": header("The seal's seqid, quoted", examples=['"2"'])}
LINK = {"Link": header("The next page (rel=next), if there is one")}
PRECONDITION = taken("If-Match", "Do it only in this state (an ETag)", '"2"')
NOT_IF = taken("If-None-Match", "Answer 304 in this state (an ETag)", '"2"')
NO_QUERY = inputs.query(NoQuery)
NOTHING = Depends(NO_QUERY)
GRANT_CODES = (
    *CHANGING,
    *("outside-roots", "risk-not-accepted", "no-such-file", "no-such-holder"),
    *("not-a-regular-file", "filesystem-unsupported", "enforcer-unavailable", "beyond-eof"),
    *("extent-unsuitable", "not-dax", "reflink-neighbours", "backs-loop-device", "overlay-upper"),
    *("file-in-use", "seal-conflict", "try-later", "cancelled", "io-error"),
)
CHANGE_CODES = (*CHANGING, "no-such-seal", "stale-seqid", "still-mapped", "try-later", "io-error")

IfMatch = Annotated[str | None, Header(include_in_schema=False)]


def _shown(seal: SealInfo, status: int = 200, **headers: str) -> Response:
    return answer(seal, status, {"ETag": etag(seal.seqid), **headers})


def _grant(body: msgspec.Struct) -> dict[str, Any]:
    asked = fields(body)
    holder = asked["holder"]
    if (asked["path"] is None) == (holder.fd is None):
        message = (
            "body: either `path` or `holder.fd` must say which file; HTTP carries no descriptors"
        )
        raise Refusal("bad-request", message, {"field": "path"})
    return {**asked, "holder": HolderSpec(pid=holder.pid, fd=holder.fd)}


@router.post(
    "/seals",
    summary="Ask for a seal, for a process that will hold it",
    description="The process is named by pid; the file by `path`, or by the number of the"
    " process's own descriptor. A process that needs the descriptor is given a claim instead.",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_GRANT,
        examples.SEAL,
        status=201,
        body=examples.GRANT_BODY,
        codes=GRANT_CODES,
        accepts=(KEY,),
        headers={**ETAG, "Location": header("Where the seal is")},
    ),
)
async def grant(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(GrantBody))],
) -> Response:
    asked = _grant(body)
    path_in_scope(caller, asked["path"])
    asked |= {"only": conditions(caller), **asked_by(caller, key)}
    reply = await daemon.call(Grant, PATIENT, **asked)
    return _shown(reply.seal, 201, Location=f"/v1/seals/{reply.seal.id}")


@router.post(
    "/claims",
    summary="Ask for a one-time claim, with which a process takes up the seal and its descriptor",
    description="The process redeems it on the control socket (`sealctl redeem`, or Redeem of the"
    " protocol), within `seconds`.",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_GRANT,
        examples.CLAIM,
        status=201,
        body=examples.CLAIM_BODY,
        codes=(*CHANGING, "no-such-file"),
    ),
)
async def claim(
    daemon: Daemon,
    caller: Asking,
    body: Annotated[msgspec.Struct, Depends(inputs.body(ClaimBody))],
) -> Response:
    asked = fields(body)
    path_in_scope(caller, asked["path"])
    asked |= {"only": conditions(caller), **asked_by(caller)}
    return answer(
        (await daemon.call(IssueClaim, **asked)).result, 201, {"Cache-Control": "no-store"}
    )


@router.get(
    "/seals",
    summary="Live seals, in order of id",
    description="`after` is the cursor: the id that the page before ended with.",
    **operation(
        Action.SEALS_READ,
        examples.PAGE,
        query=ListQuery,
        codes=(*GUARDED, "no-such-file", "io-error"),
        headers=LINK,
    ),
)
async def index(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ListQuery))],
) -> Response:
    asked = fields(query)
    path_in_scope(caller, asked["path"])
    page = (await daemon.call(List, **asked, below=caller.directories)).result
    assert isinstance(page, SealPage)
    return answer(page, 200, linked(request, page.next))


def linked(request: Request, cursor: object) -> dict[str, str]:
    """The Link field of RFC 8288 to the page after."""
    if cursor is None:
        return {}
    query = {**request.query_params, "after": str(cursor)}
    return {"Link": f'<{request.url.path}?{urlencode(query)}>; rel="next"'}


SEAL_PARAMETER = {
    "name": "seal",
    "in": "path",
    "required": True,
    "description": "A seal's id",
    "schema": {"type": "string", "pattern": SEAL_ID},
    "example": examples.ID,
}


@router.get(
    "/seals/{seal}",
    summary="One seal",
    **operation(
        Action.SEALS_READ,
        examples.SEAL,
        codes=(*GUARDED, "no-such-seal"),
        accepts=(SEAL_PARAMETER, NOT_IF),
        headers=ETAG,
        others={304: {"description": "Not Modified", "headers": ETAG}},
    ),
)
async def show(request: Request) -> Response:
    seal: str = request.path_params["seal"]
    if request.scope["query_string"]:
        await NO_QUERY(request)
    if not re.fullmatch(SEAL_ID, seal):
        raise Refusal("bad-request", f"seal: want {SEAL_ID}", {"field": "seal"})
    found = await seal_in_scope(request.app.state.connection, request.state.caller, seal)
    if not none_match(request.headers.get("if-none-match"), found.seqid):
        return Response(status_code=304, headers={"ETag": etag(found.seqid)})
    return _shown(found)


async def _quick_show(request: Request) -> Response:
    admit(request, Action.SEALS_READ)
    return await show(request)


# What is asked for most often goes past FastAPI's own way to a route and its parameters, which
# costs more than the answer. The route above is the same, and described.
QUICK = Route("/v1/seals/{seal}", _quick_show, methods=["GET"])


@router.delete(
    "/seals/{seal}",
    summary="Return a seal; its holder must have unmapped the range",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_CHANGE_OWN,
        examples.RETURNED,
        codes=CHANGE_CODES,
        accepts=(PRECONDITION, KEY),
        headers=ETAG,
    ),
)
async def give_back(
    daemon: Daemon, caller: Asking, seal: SealPath, key: GivenKey, if_match: IfMatch = None
) -> Response:
    return await _change(daemon, caller, Return, seal, if_match, key=key)


@router.post(
    "/seals/{seal}/return",
    summary="Return a seal, or a part at one end of it",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_CHANGE_OWN,
        examples.SEAL,
        body=examples.RETURN_BODY,
        codes=CHANGE_CODES,
        accepts=(PRECONDITION, KEY),
        headers=ETAG,
    ),
)
async def return_part(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(ReturnBody))],
    if_match: IfMatch = None,
) -> Response:
    return await _change(daemon, caller, Return, seal, if_match, body, key=key)


@router.post(
    "/seals/{seal}/renewal",
    summary="Begin the seal's ttl anew",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_CHANGE_OWN,
        examples.SEAL,
        body=examples.RENEW_BODY,
        codes=CHANGE_CODES,
        accepts=(PRECONDITION, KEY),
        headers=ETAG,
    ),
)
async def renew(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(RenewBody))],
    if_match: IfMatch = None,
) -> Response:
    return await _change(daemon, caller, Renew, seal, if_match, body, key=key)


@router.post(
    "/seals/{seal}/downgrade",
    summary="From rw to read: the holder will only read from now on",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_CHANGE_OWN,
        examples.SEAL,
        body=examples.DOWNGRADE_BODY,
        codes=CHANGE_CODES,
        accepts=(PRECONDITION, KEY),
        headers=ETAG,
    ),
)
async def downgrade(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(DowngradeBody))],
    if_match: IfMatch = None,
) -> Response:
    return await _change(daemon, caller, Downgrade, seal, if_match, body, key=key)


async def _change(
    daemon: Connection,
    caller: Asking,
    kind: type[AnyRequest],
    seal: str,
    if_match: str | None,
    body: msgspec.Struct | None = None,
    *,
    key: str,
) -> Response:
    await changeable(daemon, caller, seal)
    seqid = await _precondition(daemon, seal, required_seqids(if_match))
    asked = fields(body) if body is not None else {}
    asked |= {"seal": seal, "seqid": seqid, **asked_by(caller, key)}
    return _shown((await daemon.call(kind, **asked)).seal)


async def _precondition(
    daemon: Connection, seal: str, allowed: frozenset[int] | None
) -> int | None:
    """The seqid for the request, which takes one and checks it itself: that has no race."""
    if allowed is None:
        return None
    if len(allowed) == 1:
        return next(iter(allowed))
    present = (await daemon.call(Show, seal=seal)).seal.seqid
    if present not in allowed:
        details = {"seqid": present, "allowed": sorted(allowed)}
        raise Refusal("stale-seqid", f"the seal's seqid is {present} now", details)
    return present


@router.get(
    "/seals/{seal}/extents",
    summary="The extent map recorded at grant, or (now=true) that of this moment",
    **operation(
        Action.SEALS_READ,
        examples.EXTENTS,
        query=ExtentsQuery,
        codes=(*GUARDED, "no-such-seal", "io-error"),
    ),
)
async def extents(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ExtentsQuery))],
) -> Response:
    if caller.below is not None:
        await seal_in_scope(daemon, caller, seal)
    return answer((await daemon.call(Extents, seal=seal, **fields(query))).result)


@router.post(
    "/seals/{seal}/validation",
    summary="Prove that the holder's mapping is as the seal requires; then the seal is active",
    dependencies=[NOTHING],
    **operation(
        Action.SEALS_CHANGE_OWN,
        examples.MAPPING,
        body=examples.VALIDATION_BODY,
        accepts=(PRECONDITION,),
        codes=(
            *CHANGING,
            *("no-such-seal", "no-such-holder", "mapping-invalid", "stale-seqid", "try-later"),
            "io-error",
        ),
    ),
)
async def validate(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    body: Annotated[msgspec.Struct, Depends(inputs.body(ValidationBody))],
    if_match: IfMatch = None,
) -> Response:
    await changeable(daemon, caller, seal)
    seqid = await _precondition(daemon, seal, required_seqids(if_match))
    asked = {"seal": seal, "seqid": seqid, **asked_by(caller)}
    return answer((await daemon.call(Mapped, PATIENT, **asked, **fields(body))).result)

"""/v1/seals: asking for one, and seeing what there is. What is done to them: changes.py."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.routing import Route

from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Extents, Grant, HolderSpec
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer, paged, shown
from sealsvc_api.auth import Asking, admit
from sealsvc_api.connection import PATIENT, Daemon
from sealsvc_api.etags import etag, none_match
from sealsvc_api.operations import CHANGING, ETAG, GUARDED, KEY, LINK, header, operation, taken
from sealsvc_api.schemas import (
    SEAL_ID,
    ExtentsQuery,
    GrantBody,
    ListQuery,
    NoQuery,
    SealPath,
    fields,
)
from sealsvc_api.scope import (
    GivenKey,
    asked_by,
    conditions,
    listed,
    path_in_scope,
    refuse_unseen,
    seal_in_scope,
)

router = APIRouter(tags=["seals"])

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
    return shown(reply.seal, 201, Location=f"/v1/seals/{reply.seal.id}")


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
    return paged(request, await listed(daemon, caller, asked))


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
    return shown(found)


async def _quick_show(request: Request) -> Response:
    admit(request, Action.SEALS_READ)
    return await show(request)


# What is asked for most often goes past FastAPI's own way to a route and its parameters, which
# costs more than the answer. The route above is the same, and described.
QUICK = Route("/v1/seals/{seal}", _quick_show, methods=["GET"])


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
    await refuse_unseen(daemon, caller, seal)
    return answer((await daemon.call(Extents, seal=seal, **fields(query))).result)

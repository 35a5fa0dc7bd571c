"""/v1/seals"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Response

from api import examples, inputs
from api.answers import answer
from api.connection import PATIENT, Connection, Daemon
from api.etags import etag, none_match, required_seqids
from api.operations import CHANGING, GUARDED, header, operation, taken
from api.schemas import (
    ExtentsQuery,
    GrantBody,
    ListQuery,
    NoQuery,
    SealPath,
    ValidationBody,
    fields,
)
from sealsvc.errors import Refusal
from sealsvc.messages import Extents, Grant, HolderSpec, List, Mapped, Return, SealInfo, Show

router = APIRouter(prefix="/seals", tags=["seals"])

ETAG = {"ETag": header("The seal's seqid, quoted", examples=['"2"'])}
PRECONDITION = taken("If-Match", "Return it only in this state (an ETag)", '"2"')
NOT_IF = taken("If-None-Match", "Answer 304 in this state (an ETag)", '"2"')
NOTHING = Depends(inputs.query(NoQuery))
GRANT_CODES = (
    *CHANGING,
    *("outside-roots", "risk-not-accepted", "no-such-file", "no-such-holder"),
    *("not-a-regular-file", "filesystem-unsupported", "enforcer-unavailable", "beyond-eof"),
    *("extent-unsuitable", "not-dax", "reflink-neighbours", "backs-loop-device", "overlay-upper"),
    *("file-in-use", "seal-conflict", "try-later", "limit-reached", "cancelled", "io-error"),
)


def _shown(seal: SealInfo, status: int = 200, **headers: str) -> Response:
    return answer(seal, status, {"ETag": etag(seal.seqid), **headers})


def _grant(body: msgspec.Struct) -> dict[str, Any]:
    asked = fields(body)
    holder = asked["holder"]
    if asked["path"] is None and holder.fd is None:
        message = "body: `path` or `holder.fd` must say which file; HTTP carries no descriptors"
        raise Refusal("bad-request", message, {"field": "path"})
    return {**asked, "holder": HolderSpec(pid=holder.pid, fd=holder.fd)}


@router.post(
    "",
    summary="Ask for a seal, for a process that will hold it",
    dependencies=[NOTHING],
    **operation(
        examples.SEAL,
        status=201,
        body=examples.GRANT_BODY,
        codes=GRANT_CODES,
        headers={**ETAG, "Location": header("Where the seal is")},
    ),
)
async def grant(
    daemon: Daemon, body: Annotated[msgspec.Struct, Depends(inputs.body(GrantBody))]
) -> Response:
    reply = await daemon.call(Grant, PATIENT, **_grant(body))
    return _shown(reply.seal, 201, Location=f"/v1/seals/{reply.seal.id}")


@router.get(
    "",
    summary="Live seals, in order of id",
    **operation(examples.PAGE, query=ListQuery),
)
async def index(
    daemon: Daemon, query: Annotated[msgspec.Struct, Depends(inputs.query(ListQuery))]
) -> Response:
    return answer((await daemon.call(List, **fields(query))).result)


@router.get(
    "/{seal}",
    summary="One seal",
    dependencies=[NOTHING],
    **operation(
        examples.SEAL,
        codes=(*GUARDED, "no-such-seal"),
        accepts=(NOT_IF,),
        headers=ETAG,
        others={304: {"description": "Not Modified", "headers": ETAG}},
    ),
)
async def show(
    daemon: Daemon,
    seal: SealPath,
    if_none_match: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    found = (await daemon.call(Show, seal=seal)).seal
    if not none_match(if_none_match, found.seqid):
        return Response(status_code=304, headers={"ETag": etag(found.seqid)})
    return _shown(found)


@router.delete(
    "/{seal}",
    summary="Return a seal; its holder must have unmapped the range",
    dependencies=[NOTHING],
    **operation(
        examples.RETURNED,
        codes=(*CHANGING, "no-such-seal", "still-mapped", "stale-seqid"),
        accepts=(PRECONDITION,),
        headers=ETAG,
    ),
)
async def give_back(
    daemon: Daemon,
    seal: SealPath,
    if_match: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    seqid = await _precondition(daemon, seal, required_seqids(if_match))
    return _shown((await daemon.call(Return, seal=seal, seqid=seqid)).seal)


async def _precondition(
    daemon: Connection, seal: str, allowed: frozenset[int] | None
) -> int | None:
    """The seqid for Return, which takes one and checks it itself: that has no race."""
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
    "/{seal}/extents",
    summary="The extent map recorded at grant",
    **operation(examples.EXTENTS, query=ExtentsQuery, codes=(*GUARDED, "no-such-seal")),
)
async def extents(
    daemon: Daemon,
    seal: SealPath,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ExtentsQuery))],
) -> Response:
    return answer((await daemon.call(Extents, seal=seal, **fields(query))).result)


@router.post(
    "/{seal}/validation",
    summary="Prove that the holder's mapping is as the seal requires; then the seal is active",
    dependencies=[NOTHING],
    **operation(
        examples.MAPPING,
        body=examples.VALIDATION_BODY,
        codes=(
            *CHANGING,
            *("no-such-seal", "no-such-holder", "mapping-invalid", "stale-seqid", "try-later"),
            *("limit-reached", "io-error"),
        ),
    ),
)
async def validate(
    daemon: Daemon,
    seal: SealPath,
    body: Annotated[msgspec.Struct, Depends(inputs.body(ValidationBody))],
) -> Response:
    return answer((await daemon.call(Mapped, PATIENT, seal=seal, **fields(body))).result)

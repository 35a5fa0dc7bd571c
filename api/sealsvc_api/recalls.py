"""/v1/recalls, /v1/audits and /v1/conflicts: what an operator does to seals that others hold, and
why."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.protocol.admin import Conflicts
from sealsvc.protocol.seals import RecallSeals, SealPage
from sealsvc.protocol.system import Audit
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer, paged
from sealsvc_api.auth import Asking, demand
from sealsvc_api.connection import PATIENT, PROMPT, Daemon
from sealsvc_api.operations import CHANGING, GUARDED, KEY, LINK, operation
from sealsvc_api.preconditions import PRECONDITION, IfMatch, seqid_wanted
from sealsvc_api.schemas import AuditBody, ConflictsQuery, ListQuery, NoQuery, RecallBody, fields
from sealsvc_api.scope import GivenKey, asked_by, listed, path_in_scope, seal_in_scope

router = APIRouter(tags=["recalls"])
NOTHING = Depends(inputs.query(NoQuery))

UNFINISHED = (State.RECALLED, State.FENCING, State.FENCE_FAILED, State.LOST)
BEGUN = operation(Action.RECALL, examples.RECALLS, status=202)["responses"][202]


def _scope(asked: dict[str, Any]) -> str:
    named = [name for name in ("seal", "path", "filesystem", "pid") if asked[name] is not None]
    named += ["all"] if asked["all"] else []
    if len(named) != 1:
        raise Refusal("bad-request", "name exactly one scope: seal, path, filesystem, pid or all")
    return named[0]


@router.post(
    "/recalls",
    summary="Recall every seal in one scope",
    description="200 when `wait` is true: the recalls have ended; 202 otherwise: they have begun."
    " If-Match has the ETag of the seal that `seal` names; a wider scope has none.",
    dependencies=[NOTHING],
    **operation(
        Action.RECALL,
        examples.RECALLS,
        body=examples.RECALL_BODY,
        codes=(
            *CHANGING,
            *("no-such-seal", "stale-seqid", "no-such-file", "outside-roots", "try-later"),
            "io-error",
        ),
        accepts=(PRECONDITION, KEY),
        others={202: BEGUN},
    ),
)
async def recall(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(RecallBody))],
    if_match: IfMatch = None,
) -> Response:
    asked = fields(body)
    scope = _scope(asked)
    if if_match is not None and scope != "seal":
        message = f"If-Match is the ETag of one seal: name it by `seal` instead of `{scope}`, or"
        raise Refusal("bad-request", f"{message} leave If-Match out", {"field": "If-Match"})
    if scope == "seal":
        await seal_in_scope(daemon, caller, asked["seal"])
        asked["seqid"] = await seqid_wanted(daemon, asked["seal"], if_match)
    elif scope == "path":
        path_in_scope(caller, asked["path"])
        asked["below"] = caller.confined
    else:
        demand(caller, Action.RECALL_WIDE)
    wait: bool = asked["wait"]
    asked |= asked_by(caller, key)
    reply = await daemon.call(RecallSeals, PATIENT if wait else PROMPT, **asked)
    return answer(reply.result, 200 if wait else 202)


@router.get(
    "/recalls",
    summary="Seals that were asked for and are not back yet",
    **operation(
        Action.SEALS_READ,
        examples.PAGE,
        query=ListQuery,
        codes=(*GUARDED, "no-such-file", "io-error"),
        headers=LINK,
    ),
)
async def under_way(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ListQuery))],
) -> Response:
    asked = fields(query)
    state = asked.pop("state")
    pages = [
        await listed(daemon, caller, {**asked, "state": each})
        for each in (UNFINISHED if state is None else (state,))
    ]
    return paged(request, _merged(pages, asked["limit"]))


def _merged(pages: list[SealPage], limit: int) -> SealPage:
    """One page of several, in order of id; it ends where the first of those ends that go on."""
    end = min((page.next for page in pages if page.next is not None), default=None)
    seals = {s.id: s for page in pages for s in page.seals if end is None or s.id <= end}
    ids = sorted(seals)
    more = end is not None or len(ids) > limit
    return SealPage(seals=[seals[i] for i in ids[:limit]], next=ids[:limit][-1] if more else None)


@router.get(
    "/conflicts",
    summary="Operations that wait for a seal at this moment",
    **operation(Action.SEALS_READ, examples.CONFLICTS, query=ConflictsQuery),
)
async def conflicts(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ConflictsQuery))],
) -> Response:
    asked = {**fields(query), "below": caller.directories}
    return answer((await daemon.call(Conflicts, **asked)).result)


@router.post(
    "/audits",
    summary="Compare the present extent maps with the recorded ones",
    description="For one seal, or (the scope / only) for every one; POST /v1/jobs does it in the"
    " background.",
    dependencies=[NOTHING],
    **operation(
        Action.RECALL,
        examples.AUDIT,
        body=examples.AUDIT_BODY,
        codes=(*CHANGING, "no-such-seal", "io-error"),
    ),
)
async def audit(
    daemon: Daemon,
    caller: Asking,
    body: Annotated[msgspec.Struct, Depends(inputs.body(AuditBody))],
) -> Response:
    asked = fields(body)
    if asked["seal"] is None:
        demand(caller, Action.JOBS_RUN)
    else:
        await seal_in_scope(daemon, caller, asked["seal"])
    return answer((await daemon.call(Audit, PATIENT, **asked, **asked_by(caller))).result)

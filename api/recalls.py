"""/v1/recalls, /v1/audits and /v1/conflicts: what an operator does to seals that others hold, and
why."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Response

from api import examples, inputs
from api.access import Action
from api.answers import answer
from api.auth import Asking, demand
from api.connection import PATIENT, PROMPT, Daemon
from api.operations import CHANGING, GUARDED, KEY, operation
from api.schemas import AuditBody, ConflictsQuery, ListQuery, NoQuery, RecallBody, fields
from api.scope import GivenKey, asked_by, path_in_scope, seal_in_scope
from sealsvc.errors import Refusal
from sealsvc.messages import Audit, List, RecallSeals, SealPage
from sealsvc.model import State
from sealsvc.overview import Conflicts

router = APIRouter(tags=["recalls"])
NOTHING = Depends(inputs.query(NoQuery))

UNFINISHED = operation(Action.RECALL, examples.RECALLS, status=202)["responses"][202]


def _scope(asked: dict[str, Any]) -> str:
    named = [name for name in ("seal", "path", "filesystem", "pid") if asked[name] is not None]
    named += ["all"] if asked["all"] else []
    if len(named) != 1:
        raise Refusal("bad-request", "name exactly one scope: seal, path, filesystem, pid or all")
    return named[0]


@router.post(
    "/recalls",
    summary="Recall every seal in one scope",
    description="200 when `wait` is true: the recalls have ended; 202 otherwise: they have begun.",
    dependencies=[NOTHING],
    **operation(
        Action.RECALL,
        examples.RECALLS,
        body=examples.RECALL_BODY,
        codes=(*CHANGING, "no-such-seal", "no-such-file", "outside-roots", "try-later", "io-error"),
        accepts=(KEY,),
        others={202: UNFINISHED},
    ),
)
async def recall(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(RecallBody))],
) -> Response:
    asked = fields(body)
    scope = _scope(asked)
    if scope == "seal":
        await seal_in_scope(daemon, caller, asked["seal"])
    elif scope == "path":
        path_in_scope(caller, asked["path"])
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
    ),
)
async def under_way(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ListQuery))],
) -> Response:
    asked = fields(query)
    path_in_scope(caller, asked["path"])
    states = [asked.pop("state")]
    if states == [None]:
        states = [State.RECALLED, State.FENCING, State.FENCE_FAILED, State.LOST]
    found = []
    for state in states:
        reply = await daemon.call(List, **asked, state=state, below=caller.directories)
        assert isinstance(reply.result, SealPage)
        found += reply.result.seals
    found.sort(key=lambda seal: seal.id)
    return answer(SealPage(seals=found))


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

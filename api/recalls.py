"""/v1/recalls and /v1/audits: what an operator does to seals that others hold."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from api import examples, inputs
from api.answers import answer
from api.connection import PATIENT, PROMPT, Daemon
from api.operations import CHANGING, operation
from api.schemas import AuditBody, NoQuery, RecallBody, fields
from sealsvc.messages import Audit, RecallSeals

router = APIRouter(tags=["recalls"], dependencies=[Depends(inputs.query(NoQuery))])

UNFINISHED = operation(examples.RECALLS, status=202)["responses"][202]


@router.post(
    "/recalls",
    summary="Recall every seal in one scope",
    description="200 when `wait` is true: the recalls have ended; 202 otherwise: they have begun.",
    **operation(
        examples.RECALLS,
        body=examples.RECALL_BODY,
        codes=(*CHANGING, "no-such-seal", "no-such-file", "outside-roots"),
        others={202: UNFINISHED},
    ),
)
async def recall(
    daemon: Daemon, body: Annotated[msgspec.Struct, Depends(inputs.body(RecallBody))]
) -> Response:
    asked = fields(body)
    wait: bool = asked["wait"]
    reply = await daemon.call(RecallSeals, PATIENT if wait else PROMPT, **asked)
    return answer(reply.result, 200 if wait else 202)


@router.post(
    "/audits",
    summary="Compare the present extent maps with the recorded ones",
    **operation(
        examples.AUDIT, body=examples.AUDIT_BODY, codes=(*CHANGING, "no-such-seal", "io-error")
    ),
)
async def audit(
    daemon: Daemon, body: Annotated[msgspec.Struct, Depends(inputs.body(AuditBody))]
) -> Response:
    return answer((await daemon.call(Audit, PATIENT, **fields(body))).result)

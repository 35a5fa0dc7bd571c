"""/v1/claims"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.seals import IssueClaim
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon
from sealsvc_api.operations import CHANGING, operation
from sealsvc_api.schemas import ClaimBody, NoQuery, fields
from sealsvc_api.scope import asked_by, conditions, path_in_scope

router = APIRouter(tags=["seals"], dependencies=[Depends(inputs.query(NoQuery))])


@router.post(
    "/claims",
    summary="Ask for a one-time claim, with which a process takes up the seal and its descriptor",
    description="The process redeems it on the control socket (`sealctl redeem`, or Redeem of the"
    " protocol), within `seconds`.",
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

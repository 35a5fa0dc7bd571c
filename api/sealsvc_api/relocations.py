"""/v1/relocations: moving the blocks of a file, as a job."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.relocation import Relocate
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.auth import Asking
from sealsvc_api.beginning import begin, beginning
from sealsvc_api.connection import Daemon
from sealsvc_api.schemas import NoQuery, RelocationBody, fields
from sealsvc_api.scope import GivenKey, asked_by

router = APIRouter(
    prefix="/relocations", tags=["relocations"], dependencies=[Depends(inputs.query(NoQuery))]
)


@router.post(
    "",
    summary="Begin to relocate a file; it is a job, to be seen and cancelled at /v1/jobs",
    **beginning(
        Action.JOBS_RUN,
        examples.RELOCATION,
        examples.RELOCATION_BODY,
        ("no-such-file", "not-a-regular-file", "filesystem-unsupported"),
    ),
)
async def start(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(RelocationBody))],
) -> Response:
    asked = {**fields(body), "below": caller.confined, **asked_by(caller, key)}
    return await begin(daemon, Relocate, asked, "jobs")

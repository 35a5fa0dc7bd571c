"""/v1/policy: read it, check a text, have the file read again."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.admin import CheckPolicy, ReloadPolicy, ShowPolicy
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon
from sealsvc_api.operations import CHANGING, KEY, operation
from sealsvc_api.schemas import NoQuery, PolicyBody, fields
from sealsvc_api.scope import GivenKey, asked_by

router = APIRouter(prefix="/policy", tags=["policy"], dependencies=[Depends(inputs.query(NoQuery))])


@router.get("", summary="The policy in force", **operation(Action.POLICY_READ, examples.POLICY))
async def show(daemon: Daemon) -> Response:
    return answer((await daemon.call(ShowPolicy)).result)


@router.post(
    "/validation",
    summary="Would this text be a configuration, and what would change?",
    **operation(Action.POLICY_READ, examples.POLICY, body=examples.POLICY_BODY, codes=CHANGING),
)
async def validate(
    daemon: Daemon, body: Annotated[msgspec.Struct, Depends(inputs.body(PolicyBody))]
) -> Response:
    return answer((await daemon.call(CheckPolicy, **fields(body))).result)


@router.post(
    "/reload",
    summary="Read the configuration file again, and take its [policy] over",
    **operation(
        Action.POLICY_CHANGE,
        examples.POLICY,
        codes=(*CHANGING, "io-error", "try-later"),
        accepts=(KEY,),
    ),
)
async def reload(daemon: Daemon, caller: Asking, key: GivenKey) -> Response:
    return answer((await daemon.call(ReloadPolicy, **asked_by(caller, key))).result)

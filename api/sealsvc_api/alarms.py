"""/v1/alarms: what an operator should look at, and saying that somebody has."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Response

from sealsvc.protocol.admin import AcknowledgeAlarm, Alarms
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon
from sealsvc_api.operations import CHANGING, KEY, operation
from sealsvc_api.schemas import AlarmsQuery, NoQuery, fields
from sealsvc_api.scope import GivenKey, asked_by

router = APIRouter(prefix="/alarms", tags=["alarms"])
AlarmPath = Annotated[
    str, Path(pattern="^[0-9a-f]{16}$", description="An alarm's id", examples=["5d1f2e0c9a7b3346"])
]


@router.get(
    "",
    summary="Alarms of this boot, the newest first",
    **operation(Action.SEALS_READ, examples.ALARMS, query=AlarmsQuery),
)
async def index(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(AlarmsQuery))],
) -> Response:
    asked = {**fields(query), "below": caller.directories}
    return answer((await daemon.call(Alarms, **asked)).result)


@router.post(
    "/{alarm}/acknowledgement",
    summary="Say that an alarm has been seen; it is open again when it comes again",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(
        Action.ALARMS_ACKNOWLEDGE,
        examples.ALARM,
        codes=(*CHANGING, "no-such-alarm"),
        accepts=(KEY,),
    ),
)
async def acknowledge(daemon: Daemon, caller: Asking, key: GivenKey, alarm: AlarmPath) -> Response:
    asked = {"alarm": alarm, "below": caller.directories, **asked_by(caller, key)}
    return answer((await daemon.call(AcknowledgeAlarm, **asked)).result)

"""/v1/status"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from api import examples, inputs
from api.answers import answer
from api.connection import Daemon
from api.operations import operation
from api.schemas import NoQuery
from sealsvc.messages import Status

router = APIRouter(tags=["status"], dependencies=[Depends(inputs.query(NoQuery))])


@router.get("/status", summary="The service as it stands", **operation(examples.STATUS))
async def show(daemon: Daemon) -> Response:
    return answer((await daemon.call(Status)).result)

"""/v1/status and /v1/version"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.admin import Measures
from sealsvc.protocol.system import ServiceStatus, Status
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon, expect
from sealsvc_api.operations import operation
from sealsvc_api.schemas import NoQuery, VersionInfo

router = APIRouter(tags=["status"], dependencies=[Depends(inputs.query(NoQuery))])

API_VERSION = "1.0"


@router.get(
    "/status", summary="The service as it stands", **operation(Action.STATUS, examples.STATUS)
)
async def show(daemon: Daemon, caller: Asking) -> Response:
    return answer((await daemon.call(Status, below=caller.directories)).result)


@router.get(
    "/measures",
    summary="Counts and distributions since the start of the service",
    **operation(Action.METRICS, examples.MEASURES),
)
async def measures(daemon: Daemon) -> Response:
    return answer((await daemon.call(Measures)).result)


@router.get(
    "/version", summary="Which versions answer", **operation(Action.STATUS, examples.VERSION)
)
async def version(daemon: Daemon) -> Response:
    found = expect(await daemon.call(Status), ServiceStatus)
    return answer(
        VersionInfo(version=found.version, api=API_VERSION, protocol=found.protocol, run=found.run)
    )

"""/healthz and /readyz, for supervisors; open to all, and they tell nothing else."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.system import Status
from sealsvc_api import examples, inputs
from sealsvc_api.answers import answer
from sealsvc_api.connection import Daemon
from sealsvc_api.operations import UNIVERSAL, operation
from sealsvc_api.schemas import NoQuery

router = APIRouter(tags=["health"], dependencies=[Depends(inputs.query(NoQuery))])

PROBE_TIMEOUT = 2.0  # seconds; below what supervisors usually wait


@router.get(
    "/healthz", summary="The API process lives", **operation(None, examples.ALIVE, codes=UNIVERSAL)
)
async def alive() -> Response:
    return answer(examples.ALIVE)


@router.get(
    "/readyz",
    summary="The service answers",
    **operation(None, examples.READY, codes=(*UNIVERSAL, "denied", "service-unavailable")),
)
async def ready(daemon: Daemon) -> Response:
    await daemon.call(Status, PROBE_TIMEOUT)
    return answer(examples.READY)

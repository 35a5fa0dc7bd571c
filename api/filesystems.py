"""/v1/filesystems"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response

from api import examples, inputs
from api.answers import answer
from api.connection import Daemon
from api.operations import operation
from api.schemas import NoQuery
from sealsvc.messages import Filesystems

router = APIRouter(tags=["filesystems"], dependencies=[Depends(inputs.query(NoQuery))])


@router.get(
    "/filesystems",
    summary="The file systems under the allowed roots, and what can be kept there",
    **operation(examples.FILESYSTEMS),
)
async def index(daemon: Daemon) -> Response:
    return answer((await daemon.call(Filesystems)).result)

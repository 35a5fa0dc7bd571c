"""/v1/files and /v1/holders: the seals, seen from what is sealed and from who holds it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import FilePage, Files, HolderPage, Holders
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer, paged
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon, expect
from sealsvc_api.operations import GUARDED, LINK, operation
from sealsvc_api.schemas import FilePath, FilesQuery, HoldersQuery, NoQuery, PidPath, fields
from sealsvc_api.scope import path_in_scope

router = APIRouter(tags=["files"])
NOTHING = Depends(inputs.query(NoQuery))


@router.get(
    "/files",
    summary="Files with live seals, in order of key",
    **operation(
        Action.SEALS_READ,
        examples.FILES,
        query=FilesQuery,
        codes=(*GUARDED, "no-such-file", "io-error"),
        headers=LINK,
    ),
)
async def files(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(FilesQuery))],
) -> Response:
    asked = fields(query)
    path_in_scope(caller, asked["path"])
    below = caller.confined if asked["path"] is not None else caller.directories
    page = expect(await daemon.call(Files, **asked, below=below), FilePage)
    return paged(request, page)


@router.get(
    "/files/{key}",
    summary="One file with live seals",
    dependencies=[NOTHING],
    **operation(Action.SEALS_READ, examples.FILE, codes=(*GUARDED, "no-such-file")),
)
async def file(daemon: Daemon, caller: Asking, key: FilePath) -> Response:
    page = expect(await daemon.call(Files, key=key, below=caller.directories), FilePage)
    if not page.files:
        raise Refusal("no-such-file", "there is no such file", {"key": key})
    return answer(page.files[0])


@router.get(
    "/holders",
    summary="Processes with live seals, in order of pid",
    **operation(Action.SEALS_READ, examples.HOLDERS, query=HoldersQuery, headers=LINK),
)
async def holders(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(HoldersQuery))],
) -> Response:
    asked = {**fields(query), "below": caller.directories}
    page = expect(await daemon.call(Holders, **asked), HolderPage)
    return paged(request, page)


@router.get(
    "/holders/{pid}",
    summary="One process with live seals",
    dependencies=[NOTHING],
    **operation(Action.SEALS_READ, examples.HOLDER, codes=(*GUARDED, "no-such-holder")),
)
async def holder(daemon: Daemon, caller: Asking, pid: PidPath) -> Response:
    page = expect(await daemon.call(Holders, pid=pid, below=caller.directories), HolderPage)
    if not page.holders:
        raise Refusal("no-such-holder", f"process {pid} holds no seal", {"pid": pid})
    return answer(page.holders[0])

"""/v1/filesystems"""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.admin import Coverage
from sealsvc.protocol.system import FilesystemInfo, FilesystemList, Filesystems
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action, Caller, is_within
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon, expect
from sealsvc_api.operations import GUARDED, operation
from sealsvc_api.schemas import CoverageQuery, NoQuery, fields
from sealsvc_api.scope import no_such_file

router = APIRouter(tags=["filesystems"])


def _concerns(filesystem: FilesystemInfo, caller: Caller) -> bool:
    """A scope is on the file system, or contains it."""
    if caller.below is None or caller.sees(filesystem.mount):
        return True
    return any(is_within(scope, (filesystem.mount,)) for scope in caller.below)


@router.get(
    "/filesystems",
    summary="The file systems under the allowed roots, and what can be kept there",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(Action.FILESYSTEMS, examples.FILESYSTEMS, codes=(*GUARDED, "io-error")),
)
async def index(daemon: Daemon, caller: Asking) -> Response:
    reply = await daemon.call(Filesystems, below=caller.directories)
    found = expect(reply, FilesystemList).filesystems
    return answer(FilesystemList(filesystems=[f for f in found if _concerns(f, caller)]))


@router.get(
    "/coverage",
    summary="What the doctor measured last on the file system of a path",
    **operation(
        Action.FILESYSTEMS,
        examples.COVERAGE,
        query=CoverageQuery,
        codes=(*GUARDED, "no-such-file"),
    ),
)
async def coverage(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(CoverageQuery))],
) -> Response:
    asked = fields(query)
    path: str = asked["path"]
    below = caller.confined
    if any(is_within(scope, (path,)) for scope in below):
        below = ["/"]  # a directory above a scope: it is on the same file system, or holds it
    elif not caller.sees(path):
        raise no_such_file(path)
    return answer((await daemon.call(Coverage, **asked, below=below)).result)

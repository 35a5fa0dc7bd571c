"""/v1/integrity: protection information of sealed files (docs/integrity.md)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Response
from msgspec import Meta

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId
from sealsvc.protocol.base import Limit, Name
from sealsvc.protocol.integrity import (
    AttachmentId,
    PiAbility,
    PiAttach,
    PiAttachment,
    PiAttachmentList,
    PiAttachments,
    PiBless,
    PiDetach,
    PiDevice,
    PiError,
    PiErrorPage,
    PiErrors,
    PiProfile,
    PiProfileList,
    PiProfiles,
    PiProgress,
    PiQuery,
    PiReport,
    PiScrub,
    PiVerify,
    Writes,
)
from sealsvc_api import inputs
from sealsvc_api.access import Action, Caller
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Connection, Daemon, expect
from sealsvc_api.operations import CHANGING, GUARDED, KEY, operation
from sealsvc_api.schemas import (
    NoQuery,
    PiAttachBody,
    PiBlessBody,
    PiScrubBody,
    PiVerifyBody,
    fields,
)
from sealsvc_api.scope import GivenKey, asked_by, changeable, path_in_scope

router = APIRouter(prefix="/integrity", tags=["integrity"])

AttachmentPath = Annotated[
    str,
    Path(pattern="^[0-9a-f]{16}$", description="An attachment's id", examples=["7f3a90c1d2e4b586"]),
]


class AbilityQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: Name


class AttachmentsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: Name | None = None
    after: AttachmentId | None = None


class ErrorsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With `wait`, the answer comes when there is an error, or after so many seconds."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Limit = 20
    wait: Annotated[float, Meta(ge=0, le=25)] = 0.0


DOCUMENTED = (
    *(PiAttachBody, PiVerifyBody, PiScrubBody, PiBlessBody),
    *(PiProfileList, PiAbility, PiAttachment, PiAttachmentList, PiErrorPage, PiReport),
)

_FILE = FileId(device=2049, inode=131, generation=7)
ERROR = PiError(
    seq=1,
    time=1767225700.0,
    kind="corrupt",
    at="return",
    attachment="7f3a90c1d2e4b586",
    path="/srv/pmem/db",
    file=_FILE,
    profile="crc32c-4k",
    block=20,
    offset=81920,
    length=4096,
    field="checksum",
    expected="98f94189",
    found="0b6f1d21",
    physical=9519104,
    seal="65f0c0ffee5ea15e00000001",
    holder=4711,
    cookie=0,
    first_good=1767225600.0,
    last_good=1767225650.0,
)
ATTACHMENT = PiAttachment(
    id="7f3a90c1d2e4b586",
    file=_FILE,
    path="/srv/pmem/db",
    profile="crc32c-4k",
    range=ByteRange(0, 1 << 20),
    uncovered=0,
    writes=Writes.ANY,
    at_grant=False,
    owner=1000,
    blocks={"clean": 255, "open": 0, "suspect": 1},
    scrub=PiProgress(done=1 << 19, total=1 << 20, running=True, started=1767225600.0, errors=0),
)
REPORT = PiReport(
    attachment="7f3a90c1d2e4b586",
    range=ByteRange(0, 1 << 20),
    verdict="corrupt",
    blocks={"good": 255, "corrupt": 1},
    read="direct",
    errors=[ERROR],
)
PROFILES = PiProfileList(
    profiles=[
        PiProfile(
            name="crc32c-4k",
            keys={"name": "crc32c-4k", "granularity": 4096, "profile": "checksum"},
            fields=[("checksum", 0, 32, "little")],
            bytes=4,
            variant="isa-l",
            source="built in",
        )
    ],
    errors=[],
)
ABILITY = PiAbility(
    path="/srv/pmem/db",
    checkers=["client", "device", "service"],
    profiles=["crc32c-4k", "t10-dif1-512"],
    device=PiDevice(
        name="sdb",
        format="T10-DIF-TYPE1-CRC",
        interval=512,
        metadata=8,
        tuple=8,
        guard="crc16-t10dif",
        reftag=True,
        profile="t10-dif1-512",
        source="FS_IOC_GETLBMD_CAP",
    ),
    notes=[],
)
_GONE = (*CHANGING, "no-such-attachment")


async def _in_scope(daemon: Connection, caller: Caller, attachment: str) -> PiAttachment:
    found = expect(await daemon.call(PiAttachments, attachment=attachment), PiAttachmentList)
    for row in found.attachments:
        if row.id == attachment and caller.sees(row.path):
            return row
    raise Refusal("no-such-attachment", f"there is no attachment {attachment}")


@router.get(
    "/profiles",
    summary="Profiles of protection information",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(Action.SEALS_READ, PROFILES),
)
async def profiles(daemon: Daemon) -> Response:
    return answer((await daemon.call(PiProfiles)).result)


@router.get(
    "/ability",
    summary="Who can check protection information of a file",
    **operation(Action.FILESYSTEMS, ABILITY, codes=(*GUARDED, "no-such-file"), query=AbilityQuery),
)
async def ability(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(AbilityQuery))],
) -> Response:
    asked = fields(query)
    path_in_scope(caller, asked["path"])
    return answer((await daemon.call(PiQuery, **asked, below=caller.confined)).result)


@router.get(
    "/attachments",
    summary="Files with tags",
    **operation(
        Action.SEALS_READ,
        PiAttachmentList(attachments=[ATTACHMENT]),
        query=AttachmentsQuery,
    ),
)
async def index(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(AttachmentsQuery))],
) -> Response:
    asked = fields(query)
    if asked["path"] is not None and not caller.sees(asked["path"]):
        # As of a file without tags: the path is compared with those on record, and not followed.
        return answer(PiAttachmentList(attachments=[]))
    found = expect(await daemon.call(PiAttachments, **asked), PiAttachmentList)
    seen = [row for row in found.attachments if caller.sees(row.path)]
    return answer(PiAttachmentList(attachments=seen, next=found.next))


@router.post(
    "/attachments",
    summary="Generate tags of a sealed range, and keep them",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(
        Action.SEALS_CHANGE_OWN,
        ATTACHMENT,
        status=201,
        body=PiAttachBody(seal=ERROR.seal, profile="crc32c-4k"),
        codes=(*CHANGING, "no-such-seal", "no-such-profile", "already-attached", "io-error"),
        accepts=(KEY,),
    ),
)
async def attach(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(PiAttachBody))],
) -> Response:
    asked = fields(body)
    await changeable(daemon, caller, asked["seal"])
    reply = await daemon.call(PiAttach, **asked, **asked_by(caller, key))
    return answer(reply.result, 201)


@router.get(
    "/attachments/{attachment}",
    summary="One attachment: its blocks by state, and its scrub",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(Action.SEALS_READ, ATTACHMENT, codes=(*GUARDED, "no-such-attachment")),
)
async def show(daemon: Daemon, caller: Asking, attachment: AttachmentPath) -> Response:
    return answer(await _in_scope(daemon, caller, attachment))


@router.delete(
    "/attachments/{attachment}",
    summary="Forget the tags of a file",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(Action.SEALS_CHANGE, ATTACHMENT, codes=_GONE, accepts=(KEY,)),
)
async def detach(
    daemon: Daemon, caller: Asking, key: GivenKey, attachment: AttachmentPath
) -> Response:
    await _in_scope(daemon, caller, attachment)
    asked = {"attachment": attachment, **asked_by(caller, key)}
    return answer((await daemon.call(PiDetach, **asked)).result)


@router.post(
    "/attachments/{attachment}/verification",
    summary="Compare the data with its tags",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(
        Action.SEALS_CHANGE,
        REPORT,
        body=PiVerifyBody(),
        codes=(*_GONE, "no-such-file", "io-error"),
        accepts=(KEY,),
    ),
)
async def verify(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    attachment: AttachmentPath,
    body: Annotated[msgspec.Struct, Depends(inputs.body(PiVerifyBody))],
) -> Response:
    await _in_scope(daemon, caller, attachment)
    asked = {"attachment": attachment, **fields(body), **asked_by(caller, key)}
    return answer((await daemon.call(PiVerify, **asked)).result)


@router.post(
    "/attachments/{attachment}/scrub",
    summary="Begin, go on with, or end a verification in the background",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(
        Action.SEALS_CHANGE,
        ATTACHMENT,
        status=202,
        body=PiScrubBody(),
        codes=_GONE,
        accepts=(KEY,),
    ),
)
async def scrub(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    attachment: AttachmentPath,
    body: Annotated[msgspec.Struct, Depends(inputs.body(PiScrubBody))],
) -> Response:
    await _in_scope(daemon, caller, attachment)
    asked = {"attachment": attachment, **fields(body), **asked_by(caller, key)}
    return answer((await daemon.call(PiScrub, **asked)).result, 202)


@router.post(
    "/attachments/{attachment}/blessing",
    summary="Take what suspect blocks hold for good, and tag it",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(
        Action.SEALS_CHANGE,
        REPORT,
        body=PiBlessBody(),
        codes=(*_GONE, "no-such-file", "io-error"),
        accepts=(KEY,),
    ),
)
async def bless(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    attachment: AttachmentPath,
    body: Annotated[msgspec.Struct, Depends(inputs.body(PiBlessBody))],
) -> Response:
    await _in_scope(daemon, caller, attachment)
    asked = {"attachment": attachment, **fields(body), **asked_by(caller, key)}
    return answer((await daemon.call(PiBless, **asked)).result)


@router.get(
    "/errors",
    summary="What was found wrong; waits until there is something, if asked to",
    **operation(Action.SEALS_READ, PiErrorPage(errors=[ERROR], next=1), query=ErrorsQuery),
)
async def errors(
    daemon: Daemon,
    caller: Asking,
    query: Annotated[msgspec.Struct, Depends(inputs.query(ErrorsQuery))],
) -> Response:
    page = expect(await daemon.call(PiErrors, **fields(query)), PiErrorPage)
    seen = [error for error in page.errors if caller.sees(error.path)]
    return answer(msgspec.structs.replace(page, errors=seen))

"""What is done to a seal: each is a POST below it, but for the return of all of it, which is also a
DELETE. All take If-Match and Idempotency-Key, and are for whoever may change the seal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.messages import AnyRequest
from sealsvc.protocol.seals import Downgrade, Mapped, Renew, Return
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer, shown
from sealsvc_api.auth import Asking
from sealsvc_api.connection import PATIENT, Connection, Daemon
from sealsvc_api.operations import CHANGING, ETAG, KEY, operation
from sealsvc_api.preconditions import PRECONDITION, IfMatch, seqid_wanted
from sealsvc_api.schemas import (
    DowngradeBody,
    NoQuery,
    RenewBody,
    ReturnBody,
    SealPath,
    ValidationBody,
    fields,
)
from sealsvc_api.scope import GivenKey, asked_by, changeable

router = APIRouter(tags=["seals"], dependencies=[Depends(inputs.query(NoQuery))])

CODES = (*CHANGING, "no-such-seal", "stale-seqid", "try-later", "io-error")

Change = Callable[..., Awaitable[Response]]


def _described(example: msgspec.Struct, body: msgspec.Struct | None = None) -> dict[str, Any]:
    return operation(
        Action.SEALS_CHANGE_OWN,
        example,
        body=body,
        codes=(*CODES, "still-mapped"),
        accepts=(PRECONDITION, KEY),
        headers=ETAG,
    )


async def _asked(
    daemon: Connection, caller: Asking, seal: str, if_match: str | None, key: str = ""
) -> dict[str, Any]:
    """What every change says, once it is allowed."""
    await changeable(daemon, caller, seal)
    seqid = await seqid_wanted(daemon, seal, if_match)
    return {"seal": seal, "seqid": seqid, **asked_by(caller, key)}


def _changing(kind: type[AnyRequest], given: type[msgspec.Struct]) -> Change:
    """A route that has the service do `kind` to a seal, as its body says."""
    read = Depends(inputs.body(given))

    async def change(
        daemon: Daemon,
        caller: Asking,
        seal: SealPath,
        key: GivenKey,
        body: msgspec.Struct = read,
        if_match: IfMatch = None,
    ) -> Response:
        asked = await _asked(daemon, caller, seal, if_match, key)
        return shown((await daemon.call(kind, **asked, **fields(body))).seal)

    return change


router.post(
    "/seals/{seal}/return",
    summary="Return a seal, or a part at one end of it",
    **_described(examples.SEAL, examples.RETURN_BODY),
)(_changing(Return, ReturnBody))

router.post(
    "/seals/{seal}/renewal",
    summary="Begin the seal's ttl anew",
    **_described(examples.SEAL, examples.RENEW_BODY),
)(_changing(Renew, RenewBody))

router.post(
    "/seals/{seal}/downgrade",
    summary="From rw to read: the holder will only read from now on",
    **_described(examples.SEAL, examples.DOWNGRADE_BODY),
)(_changing(Downgrade, DowngradeBody))


@router.delete(
    "/seals/{seal}",
    summary="Return a seal; its holder must have unmapped the range",
    **_described(examples.RETURNED),
)
async def give_back(
    daemon: Daemon, caller: Asking, seal: SealPath, key: GivenKey, if_match: IfMatch = None
) -> Response:
    asked = await _asked(daemon, caller, seal, if_match, key)
    return shown((await daemon.call(Return, **asked)).seal)


@router.post(
    "/seals/{seal}/validation",
    summary="Prove that the holder's mapping is as the seal requires; then the seal is active",
    **operation(
        Action.SEALS_CHANGE_OWN,
        examples.MAPPING,
        body=examples.VALIDATION_BODY,
        codes=(*CODES, "no-such-holder", "mapping-invalid"),
        accepts=(PRECONDITION,),
    ),
)
async def validate(
    daemon: Daemon,
    caller: Asking,
    seal: SealPath,
    body: Annotated[msgspec.Struct, Depends(inputs.body(ValidationBody))],
    if_match: IfMatch = None,
) -> Response:
    asked = await _asked(daemon, caller, seal, if_match)
    return answer((await daemon.call(Mapped, PATIENT, **asked, **fields(body))).result)

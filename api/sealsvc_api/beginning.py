"""Requests that begin a job: how they are described, and how they are answered."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from sealsvc.protocol.admin import JobInfo
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.connection import Daemon, expect
from sealsvc_api.operations import CHANGING, KEY, header, operation


def beginning(
    action: Action, example: Any, body: Any, codes: tuple[str, ...], *, where: str = "the job"
) -> dict[str, Any]:
    """As operation(), of a request that is answered with 202 and the Location of `where`. `codes`
    are the errors besides those of every change."""
    return operation(
        action,
        example,
        status=202,
        body=body,
        codes=(*CHANGING, *codes),
        accepts=(KEY,),
        headers={"Location": header(f"Where {where} is")},
    )


async def begin(daemon: Daemon, message: Any, asked: dict[str, Any], at: str) -> Response:
    """Send a message whose answer is a JobInfo; its Location is below /v1/`at`. Raises Refusal."""
    job = expect(await daemon.call(message, **asked), JobInfo)
    return answer(job, 202, {"Location": f"/v1/{at}/{job.id}"})

"""/v1/copies: copies between files below the allowed roots, as jobs; and how far offloads are
trusted."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import CancelJob, JobInfo, JobKind, JobList, Jobs, ShowJob
from sealsvc.protocol.copies import CopyTrust, StartCopy
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action, Caller
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.beginning import begin, beginning
from sealsvc_api.connection import Daemon, expect
from sealsvc_api.operations import CHANGING, GUARDED, operation
from sealsvc_api.schemas import CopyBody, JobPath, NoQuery, fields
from sealsvc_api.scope import GivenKey, asked_by

router = APIRouter(prefix="/copies", tags=["copies"], dependencies=[Depends(inputs.query(NoQuery))])

trust_router = APIRouter(
    prefix="/copy-trust", tags=["copies"], dependencies=[Depends(inputs.query(NoQuery))]
)


@router.post(
    "",
    summary="Begin a copy; it is a job, whose result says what was copied and how",
    **beginning(
        Action.COPY,
        examples.COPY,
        examples.COPY_BODY,
        ("no-such-file", "not-a-regular-file", "filesystem-unsupported"),
        where="the copy",
    ),
)
async def start(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(CopyBody))],
) -> Response:
    asked = {**fields(body), "below": caller.confined, **asked_by(caller, key)}
    return await begin(daemon, StartCopy, asked, "copies")


@router.get(
    "",
    summary="Copies that the caller may see, the newest first, without their results",
    **operation(Action.COPY, examples.COPIES),
)
async def index(daemon: Daemon, caller: Asking) -> Response:
    found = expect(await daemon.call(Jobs), JobList)
    return answer(JobList(jobs=[job for job in found.jobs if _sees(caller, job)]))


@trust_router.get(
    "",
    summary="What was measured of strategies, and found in self-tests of offloads",
    **operation(Action.JOBS_READ, examples.COPY_TRUST),
)
async def trust(daemon: Daemon) -> Response:
    return answer((await daemon.call(CopyTrust)).result)


@router.get(
    "/{job}",
    summary="One copy, with its result",
    **operation(Action.COPY, examples.COPY, codes=(*GUARDED, "no-such-job")),
)
async def show(daemon: Daemon, caller: Asking, job: JobPath) -> Response:
    return answer(await _own(daemon, caller, job))


@router.delete(
    "/{job}",
    summary="Cancel a copy; its result says how far it came, and how to go on",
    **operation(Action.COPY, examples.COPY, codes=(*CHANGING, "no-such-job")),
)
async def cancel(daemon: Daemon, caller: Asking, job: JobPath) -> Response:
    await _own(daemon, caller, job)
    return answer((await daemon.call(CancelJob, job=job, **asked_by(caller))).result)


async def _own(daemon: Daemon, caller: Caller, job: str) -> JobInfo:
    found = expect(await daemon.call(ShowJob, job=job), JobInfo)
    if not _sees(caller, found):
        raise Refusal("no-such-job", f"there is no job {job}", {"job": job})
    return found


def _sees(caller: Caller, job: JobInfo) -> bool:
    """Who may see everything sees every copy, others those that they began."""
    mine = caller.below is None or job.principal == caller.name
    return job.kind is JobKind.COPY and mine

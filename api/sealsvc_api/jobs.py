"""/v1/jobs: audits of everything, and runs of the doctor, in the background."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Response

from sealsvc.protocol.admin import CancelJob, Jobs, ShowJob, StartJob
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.beginning import begin, beginning
from sealsvc_api.connection import Daemon
from sealsvc_api.operations import CHANGING, GUARDED, operation
from sealsvc_api.schemas import JobBody, JobPath, NoQuery, fields
from sealsvc_api.scope import GivenKey, asked_by

router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[Depends(inputs.query(NoQuery))])


@router.post(
    "",
    summary="Begin a job; its progress is told by `job` events",
    **beginning(
        Action.JOBS_RUN,
        examples.JOB,
        examples.JOB_BODY,
        ("filesystem-unsupported", "no-such-file"),
    ),
)
async def start(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    body: Annotated[msgspec.Struct, Depends(inputs.body(JobBody))],
) -> Response:
    return await begin(daemon, StartJob, {**fields(body), **asked_by(caller, key)}, "jobs")


@router.get("", summary="Jobs, the newest first", **operation(Action.JOBS_READ, examples.JOBS))
async def index(daemon: Daemon) -> Response:
    return answer((await daemon.call(Jobs)).result)


@router.get(
    "/{job}",
    summary="One job, with its result",
    **operation(Action.JOBS_READ, examples.JOB, codes=(*GUARDED, "no-such-job")),
)
async def show(daemon: Daemon, job: JobPath) -> Response:
    return answer((await daemon.call(ShowJob, job=job)).result)


@router.delete(
    "/{job}",
    summary="Cancel a job",
    **operation(Action.JOBS_RUN, examples.JOB, codes=(*CHANGING, "no-such-job")),
)
async def cancel(daemon: Daemon, caller: Asking, job: JobPath) -> Response:
    return answer((await daemon.call(CancelJob, job=job, **asked_by(caller))).result)

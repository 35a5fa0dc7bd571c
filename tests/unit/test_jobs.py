"""Jobs end in a state that says how, whatever ends them."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from sealsvc.errors import Refusal
from sealsvc.jobs import Job, JobRunner
from sealsvc.overview import JobInfo, JobKind, JobState


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (Refusal("io-error", "the disk is gone"), "io-error: the disk is gone"),
        (ZeroDivisionError(), "internal error: see the service's log"),
    ],
)
def test_a_job_that_fails_is_over(raised: Exception, told: str) -> None:
    runner = JobRunner(Mock(), Mock(), Mock(), Mock(), Mock(), AsyncMock())
    job = Job(
        JobInfo(
            id="1",
            kind=JobKind.AUDIT,
            state=JobState.RUNNING,
            principal="root",
            started_at=0.0,
        )
    )

    async def work(_: Job) -> dict[str, Any]:
        raise raised

    if isinstance(raised, Refusal):
        asyncio.run(runner._run(job, work))
    else:
        with pytest.raises(type(raised)):
            asyncio.run(runner._run(job, work))
    assert (job.info.state, job.info.error) == (JobState.FAILED, told)
    assert job.info.ended_at is not None

"""Jobs end in a state that says how, whatever ends them."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.jobs.jobs import Job, JobRunner
from sealsvc.jobs.store import REMEMBERED
from sealsvc.lifecycle.policy import Policy
from sealsvc.protocol.admin import JobInfo, JobKind, JobState
from sealsvc.runtime.config import PolicySection


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


@pytest.mark.parametrize(
    ("quiet", "loud"),
    [((0, ""), (1000, "")), ((0, "alice"), (0, "bob")), ((None, "alice"), (None, "bob"))],
)
def test_one_users_jobs_push_out_nobody_elses(
    quiet: tuple[int | None, str], loud: tuple[int | None, str]
) -> None:
    grants = Mock(policy=Policy(PolicySection(operators=[0])))
    runner = JobRunner(grants, Mock(), Mock(), Mock(), Mock(), AsyncMock())
    for number in range(REMEMBERED + 20):
        uid, principal = quiet if number < 4 else loud
        state = JobState.RUNNING if number in (4, 5) else JobState.DONE
        info = JobInfo(
            id=str(number), kind=JobKind.COPY, state=state, principal=principal, started_at=0.0
        )
        runner._jobs[info.id] = Job(info, uid)
        runner._make_room()
    left = [int(info.id) for info in reversed(runner.all())]
    assert len(left) == REMEMBERED
    assert left[:6] == [0, 1, 2, 3, 4, 5], "the other user's, and those that run"
    assert left[6:] == list(range(26, REMEMBERED + 20)), "the newest"

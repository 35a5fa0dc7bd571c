"""Jobs over a restart of the service and of the API: none is forgotten, and what ran is told as
interrupted, which is true: nothing of it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from sealsvc.client import Client
from sealsvc.protocol.admin import JobInfo
from sealsvc.protocol.copies import StartCopy
from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front
from tests.support.service import RISKS, MiB, Running, served
from tests.support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture
def running(xfs: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [xfs], RISKS)) as made:
        yield made


@pytest.fixture
def principals(tmp_path: Path) -> Path:
    entry = {"role": "admin", "scopes": ["/"], "token": TOKEN}
    return write_principals(tmp_path / "principals.toml", root=entry)


def states(there: Front) -> dict[str, dict[str, object]]:
    with there.http() as http:
        answer = http.get("/v1/jobs")
        assert answer.status_code == 200, answer.text
        return {job["id"]: job for job in answer.json()["jobs"]}


def workers(root: Path) -> list[int]:
    """The processes of copies between files below `root`, and of doctors there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            command = process.cmdline()
            below = "sealsvc.doctor" in command and str(root) in command
            if "sealsvc.copies" in command:
                below = os.readlink(f"/proc/{process.pid}/fd/{command[-1]}").startswith(str(root))
            if below:
                found.append(process.pid)
    return found


def slow_copy(running: Running, root: Path) -> str:
    """A copy that takes minutes: its job."""
    paths = [root / "job-source", root / "job-copy"]
    for path in paths:
        path.write_bytes(os.urandom(4 * MiB))
    fds = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in paths]
    with Client(str(running.socket)) as client:
        asked = {"strategies": ["plain"], "throttle": MiB // 64, "seals": False}
        job = client.call(StartCopy, fds, **asked).result
    for fd in fds:
        os.close(fd)
    assert isinstance(job, JobInfo)
    return job.id


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_no_job_is_forgotten(running: Running, principals: Path, xfs: Path, how: str) -> None:
    with front(running.directory, principals) as there, there.http() as http:
        audit = http.post("/v1/jobs", json={"kind": "audit"}).json()["id"]
        until(lambda: states(there)[audit]["state"] == "done")
        result = http.get(f"/v1/jobs/{audit}").json()["result"]
        doctor = http.post("/v1/jobs", json={"kind": "doctor", "path": str(xfs)}).json()["id"]
        copy = slow_copy(running, xfs)
        until(lambda: len(workers(xfs)) == 2)
        before = states(there)
        assert [before[job]["state"] for job in (doctor, copy)] == ["running"] * 2
    # The API is gone; then the service.
    if how == "killed":
        running.kill()
    else:
        running.stop()
    running.start()
    running.ready()
    with front(running.directory, principals) as there, there.http() as http:
        after = states(there)
        assert list(after) == list(before), "the same jobs, in the same order"
        for job in (doctor, copy):
            assert after[job]["state"] == "interrupted", after[job]
            assert "while the job was under way" in str(after[job]["error"])
            assert after[job]["ended_at"]
            assert http.delete(f"/v1/jobs/{job}").json()["state"] == "interrupted"
        assert after[audit] == before[audit]
        assert http.get(f"/v1/jobs/{audit}").json()["result"] == result
        again = http.post("/v1/jobs", json={"kind": "audit"})
        assert again.status_code == 202, again.text
    until(lambda: not workers(xfs), what="the end of what worked for them")
    until(lambda: not list(xfs.glob(".sealsvc-doctor-*")))
    for name in ("job-source", "job-copy"):
        (xfs / name).unlink()

"""Copies as the service makes them: seals, rights, progress, cancelling."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.linux import native
from sealsvc.protocol.admin import CancelJob, JobInfo, JobState, ShowJob
from sealsvc.protocol.copies import CopyTrust, CopyTrustReport, StartCopy
from sealsvc.protocol.seals import Return
from tests.copies.conftest import MiB, pattern
from tests.copies.stacks import filled, same_bytes
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(reference: Path) -> Path:
    return reference


@pytest.fixture
def client(socket: str) -> Iterator[Client]:
    with Client(socket) as made:
        yield made


@contextmanager
def descriptors(a: Path, b: Path, mode: int = os.O_RDONLY) -> Iterator[list[int]]:
    fds = [os.open(a, mode | os.O_CLOEXEC), os.open(b, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def start(client: Client, fds: list[int], **asked: Any) -> JobInfo:
    job = client.call(StartCopy, fds, **asked).result
    assert isinstance(job, JobInfo)
    return job


def ended(client: Client, job: JobInfo) -> JobInfo:
    found = job

    def over() -> bool:
        nonlocal found
        found = client.call(ShowJob, job=job.id).result  # type: ignore[assignment]
        return found.state is not JobState.RUNNING

    until(over, what="the copy's end")
    return found


def copied(client: Client, a: Path, b: Path, **asked: Any) -> dict[str, Any]:
    with descriptors(a, b) as fds:
        begun = start(client, fds, **asked)
    job = ended(client, begun)
    assert job.state is JobState.DONE, job.error
    return job.result


def sealctl(socket: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", socket)
    return subprocess.run(
        (*command, *map(str, arguments)), capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_sealctl_tells_plan_result_and_trust(socket: str, place: Path) -> None:
    a = filled(place / "cli-a", pattern(8 * MiB))
    b = filled(place / "cli-b", pattern(8 * MiB, seed=2))
    planned = json.loads(sealctl(socket, "copy", "--dry-run", "-o", "json", a, b).stdout)
    assert [piece["strategy"] for piece in planned["plan"]] == ["lower"]
    assert planned["sealed"]
    assert planned["not_used"]["clone"] == "the file system (ext4) cannot share blocks"
    assert not same_bytes(a, b)
    done = sealctl(socket, "copy", a, b)
    assert done.returncode == 0, done.stderr
    assert "by lower 8M" in done.stdout
    assert same_bytes(a, b)
    trust = sealctl(socket, "copy", "--trust").stdout
    assert "lower" in trust
    assert "verified" in trust
    assert "ID" in sealctl(socket, "ls").stdout.splitlines()[0]
    assert len(sealctl(socket, "ls").stdout.splitlines()) == 1  # the copy's seals are returned


def test_a_new_file_and_a_range_and_one_file(socket: str, place: Path) -> None:
    data = pattern(3 * MiB + 5)
    a = filled(place / "new-a", data)
    planned = sealctl(socket, "copy", "--dry-run", "-o", "json", a, place / "new-b")
    assert json.loads(planned.stdout)["plan"][0]["strategy"] in ("range", "direct", "plain")
    assert not (place / "new-b").exists()
    assert sealctl(socket, "copy", a, place / "new-b").returncode == 0
    assert same_bytes(a, place / "new-b")
    done = sealctl(socket, "copy", "--range", "0:1M", "--to", "2M", "-o", "json", a, a)
    assert json.loads(done.stdout)["bytes_by_strategy"] == {"lower": MiB}
    assert a.read_bytes() == data[: 2 * MiB] + data[:MiB] + data[3 * MiB :]


def test_a_partial_copy_has_another_exit_status_and_a_token(socket: str, place: Path) -> None:
    """A destination that has no room."""
    a = filled(place / "big-a", pattern(48 * MiB))
    b, filler = place / "small-b", place / "filler"
    b.touch()
    free = os.statvfs(place).f_bavail * 4096
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 4 * MiB)
        done = sealctl(socket, "copy", "-o", "json", a, b)
        result = json.loads(done.stdout)
        assert (done.returncode, result["whole"], result["errno"]) == (1, False, errno.ENOSPC)
        assert result["done"] < 48 * MiB
        assert b.read_bytes()[: result["done"]] == a.read_bytes()[: result["done"]]
        filler.unlink()
        again = sealctl(socket, "copy", "-o", "json", "--resume", result["token"], a, b)
        assert again.returncode == 0, again.stderr
        rest = json.loads(again.stdout)
        assert sum(row["length"] for row in rest["rows"]) == 48 * MiB - result["done"]
        assert same_bytes(a, b)
    finally:
        for path in (a, b, filler):
            path.unlink(missing_ok=True)


def test_a_cancelled_job_tells_how_far_it_came(client: Client, place: Path) -> None:
    a, b = filled(place / "slow-a", pattern(8 * MiB)), place / "slow-b"
    with descriptors(a, b) as fds:
        job = start(client, fds, throttle=MiB // 4)
        until(lambda: client.call(ShowJob, job=job.id).result.done > 0)
        cancelled = client.call(CancelJob, job=job.id).result
    assert cancelled.state is JobState.CANCELLED
    assert 0 < cancelled.result["done"] < 8 * MiB
    assert cancelled.result["token"]
    assert b.read_bytes() == a.read_bytes()[: cancelled.result["done"]]


def test_a_recalled_copy_lets_go_and_ends_without_seals(
    client: Client, socket: str, place: Path
) -> None:
    """A conflict waits for one call of the offload, not for the copy."""
    a = filled(place / "recall-a", pattern(32 * MiB))
    b = filled(place / "recall-b", pattern(32 * MiB, seed=2))
    with descriptors(a, b) as fds:
        job = start(client, fds, throttle=4 * MiB)
    until(lambda: client.call(ShowJob, job=job.id).result.step == "lower")
    with a.open("rb") as other:  # an exclusive seal: opening is the conflict
        other.read(1)
    assert client.call(ShowJob, job=job.id).result.state is JobState.RUNNING
    done = ended(client, job)
    assert done.state is JobState.DONE, done.error
    assert done.result["whole"]
    assert done.result["unsealed_why"] == "a seal was recalled during the copy"
    assert {"lower"} < set(done.result["bytes_by_strategy"])
    assert same_bytes(a, b)


def test_no_offload_while_the_asker_has_the_file_open(client: Client, place: Path) -> None:
    """Through a descriptor that it shares it could punch the file, and the blocks be another's."""
    a, b = filled(place / "open-a", pattern(MiB)), filled(place / "open-b", bytes(MiB))
    with descriptors(a, b) as fds:
        done = ended(client, start(client, fds))
    assert not done.result["sealed"]
    assert "file-in-use" in done.result["unsealed_why"]
    assert "lower" not in done.result["bytes_by_strategy"]
    assert same_bytes(a, b)


# Seals of others


@pytest.mark.parametrize("held", ["source", "destination"])
def test_with_a_seal_on_either_file_no_block_is_shared_and_no_map_changes(
    client: Client, xfs: Path, held: str
) -> None:
    a = filled(xfs / f"held-{held}-a", pattern(2 * MiB))
    b = filled(xfs / f"held-{held}-b", pattern(2 * MiB, seed=2))
    assert set(copied(client, a, b, seals=False)["bytes_by_strategy"]) == {"clone"}
    b = filled(xfs / f"held-{held}-c", pattern(2 * MiB, seed=2))
    path = a if held == "source" else b
    prepare = ["unshare"]
    reply = client.grant(path=str(path), kind="shared", conflict="refuse", prepare=prepare)
    fd = reply.fds[0]
    try:
        before = native.read_extents(fd, None)
        result = copied(client, a, b)
        after = native.read_extents(fd, None)
    finally:
        os.close(fd)
        client.call(Return, seal=reply.seal.id)
    assert result["whole"]
    assert set(result["bytes_by_strategy"]) == {"plain"}
    assert reply.seal.id in result["unsealed_why"]
    assert (before == after).all()
    assert same_bytes(a, b)


def test_a_hole_is_written_as_zeros_into_a_sealed_file(client: Client, xfs: Path) -> None:
    a = filled(xfs / "zeros-a", pattern(2 * MiB))
    os.truncate(a, 4 * MiB)
    b = filled(xfs / "zeros-b", pattern(4 * MiB, seed=2))
    reply = client.grant(path=str(b), kind="shared", conflict="refuse")
    try:
        before = native.read_extents(reply.fds[0], None)
        assert copied(client, a, b)["bytes_by_strategy"] == {"plain": 2 * MiB, "zero": 2 * MiB}
        assert (native.read_extents(reply.fds[0], None) == before).all()
    finally:
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
    assert same_bytes(a, b)


def test_recall_takes_the_seals_away_first(client: Client, socket: str, xfs: Path) -> None:
    a = filled(xfs / "wanted-a", pattern(MiB))
    b = filled(xfs / "wanted-b", pattern(MiB, seed=2))
    with Client(socket) as holder:
        reply = holder.grant(path=str(a), kind="shared", conflict="wait", grace=200)
        with descriptors(a, b) as fds:
            job = start(client, fds, recall=True)
            push = next(holder.pushes(PATIENCE))
            assert push.seal == reply.seal.id
            assert client.call(ShowJob, job=job.id).result.state is JobState.RUNNING
            os.close(reply.fds[0])
            holder.call(Return, seal=reply.seal.id)
            done = ended(client, job)
    assert set(done.result["bytes_by_strategy"]) == {"clone"}


# Rights


def as_user(uid: int, socket: str, program: str, *arguments: object) -> str:
    """What `program` prints as another user; `client` and `fds` are made for it."""
    text = (
        "import os, sys, json\n"
        "a, b = (os.open(p, m) for p, m in zip(sys.argv[2:4], (os.O_RDONLY, os.O_RDWR)))\n"
        f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
        "from sealsvc.client import Client\n"
        "from sealsvc.protocol.copies import *\n"
        "from sealsvc.protocol.admin import *\n"
        "from sealsvc.core.errors import Refusal\n"
        "client = Client(sys.argv[1])\n"
        f"{program}\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", text, socket, *map(str, arguments)),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_user_copies_what_it_could_open_and_looks_after_its_own_job(
    socket: str, client: Client, place: Path
) -> None:
    a = filled(place / "user-a", pattern(MiB))
    b = filled(place / "user-b", pattern(MiB, seed=2))
    b.chmod(0o6777)
    told = as_user(
        1234,
        socket,
        "import time\n"
        "job = client.call(StartCopy, [a, b]).result\n"
        "while job.state == 'running':\n"
        "    time.sleep(0.02); job = client.call(ShowJob, job=job.id).result\n"
        "print(json.dumps([job.id, job.state, job.result['sealed'], job.result['unsealed_why']]))",
        *(a, b),
    )
    job, state, sealed, why = json.loads(told)
    assert (state, sealed) == ("done", False)
    assert "read-only descriptor" in why  # it could not have such a seal itself
    assert same_bytes(a, b)
    assert b.stat().st_mode & 0o7777 == 0o777
    refused = as_user(
        1235,
        socket,
        f"try:\n    client.call(ShowJob, job='{job}'); print('seen')\n"
        "except Refusal as refusal:\n    print(refusal.code)",
        *(a, b),
    )
    assert refused == "denied"


@pytest.mark.parametrize(
    ("asked", "fds", "code"),
    [
        ("source='/etc/passwd', destination='/etc/shadow'", "", "denied"),
        ("recall=True", "a, b", "denied"),
        ("", "b, a", "denied"),  # the destination is not open for writing
        ("", "", "bad-request"),
    ],
)
def test_what_a_user_may_not(socket: str, place: Path, asked: str, fds: str, code: str) -> None:
    a, b = filled(place / "may-a", b"a" * 4096), filled(place / "may-b", b"b" * 4096)
    program = (
        f"try:\n    client.call(StartCopy, [{fds}], {asked}); print('begun')\n"
        "except Refusal as refusal:\n    print(refusal.code)"
    )
    assert as_user(1234, socket, program, a, b) == code
    assert b.read_bytes() == b"b" * 4096


def test_paths_are_those_below_the_roots_and_below_the_scopes(
    client: Client, place: Path, tmp_path: Path
) -> None:
    a, b = filled(place / "scope-a", pattern(MiB)), filled(place / "scope-b", bytes(MiB))
    (place / "link").symlink_to(b)
    outside = filled(tmp_path / "outside", b"x")
    named = {"source": str(a), "destination": str(b)}
    job = ended(client, start(client, [], **named, below=[str(place)]))
    assert job.result["whole"]
    assert same_bytes(a, b)
    for wrong in (
        named | {"destination": str(outside)},
        named | {"destination": str(place / "link")},
        named | {"below": [str(place / "elsewhere")]},
    ):
        with pytest.raises(Refusal) as caught:
            start(client, [], **({"below": [str(place)]} | wrong))
        assert caught.value.code == "no-such-file"


def test_trust_is_told_over_the_socket(client: Client, place: Path) -> None:
    a, b = filled(place / "trust-a", pattern(MiB)), filled(place / "trust-b", bytes(MiB))
    copied(client, a, b)
    report = client.call(CopyTrust).result
    assert isinstance(report, CopyTrustReport)
    assert any((row.strategy, row.self_test) == ("lower", "verified") for row in report.rows)

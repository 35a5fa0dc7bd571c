"""What anybody may send: no request, and no name of a file, is answered by `internal`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import CancelJob, Jobs, JobState
from sealsvc.protocol.seals import List, Return, Show
from tests.hostile.requests import kinds, requests
from tests.hostile.users import answer, connected
from tests.support.service import RISKS, MiB, Running
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

# Answered when something else has happened.
_WAIT = ("recall.wait",)


def test_no_request_is_answered_by_internal(running: Running, file: Path) -> None:
    codes: Counter[str] = Counter()
    defects = {}
    sock = connected(str(running.socket))
    bases = ({"path": str(file)}, {"path": str(file), "kind": "shared"}, {"seal": "0" * 24})
    for name, data in requests(*bases):
        if name in _WAIT:
            continue
        sock.send(data)
        found = answer(sock)
        assert found, f"the connection was closed by {data!r}"
        code = found.get("code", "done")
        codes[code] += 1
        if code == "internal":
            defects[name] = (data, found["message"])
    sock.close()
    _end_jobs(running)
    assert not defects
    assert len(kinds()) > 30
    assert codes["done"] > 100, codes
    assert codes["bad-request"] > 1000, codes


def _end_jobs(running: Running) -> None:
    """Some requests have started a doctor, which is a service of its own."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        jobs = client.call(Jobs).result.jobs
        live = [job.id for job in jobs if job.state is JobState.RUNNING]
        for job in live:
            client.call(CancelJob, job=job)


NAMES = [
    b"m\xff\xfename",
    "\U0010ffff".encode(),
    b"\\xff",
    "u\u0085\u2028v".encode(),
    b"\xed\xb3\xbf",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_is_sealed_and_told(running: Running, root: Path, name: bytes) -> None:
    path = os.fsencode(root) + b"/" + name
    with open(path, "wb") as made:
        made.write(os.urandom(MiB))
        os.fsync(made.fileno())
    try:
        with Client(str(running.socket), timeout=PATIENCE) as client:
            fd = os.open(path, os.O_RDWR)
            by_descriptor = client.grant(fds=[fd], kind="shared", key=f"descriptor {name!r}").seal
            os.close(fd)
            # What the service told names the file: the name is the same to it, however it came.
            [listed] = client.call(List, path=by_descriptor.path).result.seals
            assert listed.id == by_descriptor.id
            client.call(Return, seal=by_descriptor.id)
            if name != "\U0010ffff".encode():  # clients take it for what the service told
                by_path = client.grant(
                    path=os.fsdecode(path), kind="exclusive", key=f"path {name!r}"
                )
                assert by_path.seal.path == by_descriptor.path
                os.close(by_path.fds[0])
                assert client.call(Show, seal=by_path.seal.id).seal.path == by_descriptor.path
                client.call(Return, seal=by_path.seal.id)
    finally:
        os.unlink(path)


def test_a_seal_of_any_name_outlives_the_service(root: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, [root], RISKS)
    running.start()
    try:
        running.ready()
        _outlives(running, root)
    finally:
        running.end()


def _outlives(running: Running, root: Path) -> None:
    path = os.fsencode(root) + b"/k\xfe"
    with open(path, "wb") as made:
        made.write(os.urandom(MiB))
        os.fsync(made.fileno())
    with Client(str(running.socket), timeout=PATIENCE) as client:
        reply = client.grant(path=os.fsdecode(path), kind="shared")
        running.kill()
        running.start()
        running.ready()
        client.reconnect()
        found = client.call(Show, seal=reply.seal.id).seal
        assert (found.path, found.state) == (reply.seal.path, "granted")
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
        with pytest.raises(Refusal, match="no-such-file"):
            client.grant(path=os.fsdecode(path) + "\udcff", kind="shared")
    os.unlink(path)

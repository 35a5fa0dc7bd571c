"""A client that leaves, or cancels, in the middle of a slow grant: it leaves nothing behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.messages import Cancel
from sealsvc.protocol.seals import Grant, List, Return
from sealsvc.protocol.system import Status
from tests.faults.conftest import Intrude, granted, nothing_is_left, serve
from tests.faults.test_errors import PREPARED, injecting
from tests.soak.leaks import differences, footprint
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace"),
]

# What takes long, and whether only such calls on the file are meant.
SLOW = [("openat2", False), ("fallocate", True), ("fsync", True), ("ioctl", True), ("fcntl", True)]
SLOWER = [f"delay_enter={seconds * 1_000_000:.0f}:when=1" for seconds in (0.3, 2, 10)]


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """Of a service that soon forgets the files that it watched."""
    with running.config.open("a") as config:
        config.write("[enforcers]\nlinger = 0.1\n")
    serve(running)
    running.ready()
    with Client(str(running.socket), timeout=PATIENCE) as made:
        yield made


@pytest.mark.parametrize("manner", ["leaves", "cancels"])
@pytest.mark.parametrize(("call", "only"), SLOW)
def test_a_grant_is_given_up(
    running: Running, client: Client, file: Path, intrude: Intrude, call: str, only: bool,
    manner: str,
) -> None:  # fmt: skip
    client.call(Return, seal=granted(client, file))
    time.sleep(1.2)  # longer than the file lingers
    assert running.process
    pid = running.process.pid
    before = footprint(pid)
    path = file if only else None
    # On a slow machine the call may be over before the grant is given up: then a longer one.
    assert any(_given_up(running, client, file, f"{call}:{slow}", path, manner) for slow in SLOWER)
    until(lambda: not differences(before, footprint(pid), 16, 1 << 20))
    nothing_is_left(running, file, intrude)


def _given_up(
    running: Running, client: Client, file: Path, slowly: str, path: Path | None, manner: str
) -> bool:
    """Whether nothing was granted."""
    with Client(str(running.socket)) as leaving, injecting(running, slowly, path=path):
        asked = leaving.send(Grant, path=str(file), kind="shared", **PREPARED)
        time.sleep(0.15)
        if manner == "cancels":
            leaving.call(Cancel, request=asked)
        else:
            leaving.close()
        time.sleep(0.5)
    until(lambda: client.call(Status).result.connections == 1)
    granted_first = client.call(List).result.seals
    for seal in granted_first:
        client.call(Return, seal=seal.id)
    return not granted_first

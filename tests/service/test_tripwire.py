"""What was let through is looked at when it has ended: if a map differs then, the seal is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from test_seal_ends import donor_for, state, swap_blocks, swap_with

from sealsvc.client import Client
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import Return
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"x" * 4096, 8192)
os.fsync(fd)
"""


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    """No audit comes that would find it as well."""
    with served(Running(tmp_path, [root], RISKS, "audit_interval = 0\n")) as made:
        yield made


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(str(running.socket), timeout=PATIENCE) as made:
        yield made


def bystander(code: str, path: Path) -> int:
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    assert process.wait(PATIENCE) == 0
    return process.pid


def alarms(client: Client) -> list[str]:
    pushes = client.pushes(0.5)
    return [
        push.data["reason"] for push in pushes if isinstance(push, Event) and push.name == "alarm"
    ]


def test_a_map_that_differs_after_a_passage_is_lost_at_once(
    running: Running, client: Client, file: Path, root: Path
) -> None:
    """The passage is innocent here; what moved the blocks is a risk that the policy accepts. It
    stands for an operation that is judged wrongly."""
    running.may_trip = True
    reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    client.call(Watch)
    swap_blocks(file, "xfs" in str(root))
    pid = bystander(WRITE, file)
    until(lambda: state(client, reply.seal.id) == "lost", what="the trip")
    [reason] = [reason for reason in alarms(client) if "tripwire" in reason]
    assert f"write of 4096 bytes at 8192 by thread {pid}" in reason
    assert str(file) in reason
    client.call(Return, seal=reply.seal.id)


def test_passages_that_move_nothing_trip_nothing(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared", conflict="refuse")
    os.close(reply.fds[0])
    client.call(Watch)
    for _ in range(20):
        bystander(WRITE, file)
    assert state(client, reply.seal.id) == "granted"
    assert not [reason for reason in alarms(client) if "tripwire" in reason]
    client.call(Return, seal=reply.seal.id)


def test_a_passage_that_takes_longer_is_looked_at_again(
    running: Running, client: Client, file: Path, root: Path
) -> None:
    """After it was let through: the map moves behind the first look. On a slow machine it may move
    behind the last one: then it is tried again."""
    running.may_trip = True
    assert any(moved_between_looks(client, file, "xfs" in str(root)) for _ in range(10))


def moved_between_looks(client: Client, file: Path, on_xfs: bool) -> bool:
    """Whether the seal is lost by it."""
    reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    donor = donor_for(file)
    command = [sys.executable, "-c", WRITE + "print(flush=True)\n", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        swap_with(donor, file, on_xfs)
    with suppress(AssertionError):
        until(lambda: state(client, reply.seal.id) == "lost", 5)
    lost = state(client, reply.seal.id) == "lost"
    client.call(Return, seal=reply.seal.id)
    return lost

"""The service with faults, and holders that are processes of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.linux.native import read_extents
from sealsvc.protocol.seals import Recall, Return
from tests.service.conftest import file as file
from tests.service.conftest import root as root
from tests.service.mapping_holder import Holder, holder
from tests.service.test_conflicts import intruding
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

PUNCH = "fallocate(3, 65536, 65536)"
RANGE = {"offset": 65536, "length": 196608}
LEGAL = {"granted", "active", "recalled", "fencing", "fence-failed", "orphaned"}

Intrude = Callable[[str], "subprocess.Popen[bytes]"]


def serve(running: Running, faults: str = "") -> None:
    """Start the service, with `faults` (sealsvc/runtime/faults.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEALSVC_FAULTS", faults)
        running.start()


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    """Not started yet. SIGTERM is soon followed by the next step of the fence."""
    made = Running(tmp_path, [root], RISKS)
    fencing(made)
    yield made
    if made.process is not None:
        made.end()


def fencing(running: Running, signal_grace: float = 0.5, proof_timeout: float = PATIENCE) -> None:
    """How long the next start of the service waits for a holder to end, and then for the proof. A
    short time is for what never comes: a slow machine must not make a fence fail."""
    rest = running.config.read_text().partition("[fence]")[0]
    running.config.write_text(
        f"{rest}[fence]\nsignal_grace = {signal_grace}\nproof_timeout = {proof_timeout}\n"
    )


@pytest.fixture
def intrude(file: Path) -> Iterator[Intrude]:
    """Start an intruder, that runs the code it is given."""
    with ExitStack() as stack:
        yield lambda code: stack.enter_context(intruding(file, code))


def blocks(path: Path) -> list[list[int]]:
    """Where the file's blocks are, whatever is pending."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_extents(fd, None)[:, :3].tolist()
    finally:
        os.close(fd)


def granted(client: Client, file: Path, **fields: object) -> str:
    reply = client.grant(path=str(file), **({"kind": "shared", "grace": 200, **RANGE} | fields))
    for fd in reply.fds:
        os.close(fd)
    return reply.seal.id


def recall_of(client: Client, seal: str) -> Recall:
    for push in client.pushes(PATIENCE):
        if isinstance(push, Recall) and push.seal == seal:
            return push
    raise AssertionError("no recall came")


@contextmanager
def holding(file: Path, running: Running, **fields: object) -> Iterator[Holder]:
    """A process that holds a seal of the file, of id `seal`, by its `client`, and maps it."""
    asked = {"path": str(file), "kind": "shared", **RANGE, **fields}
    with holder(file) as process:
        process.do("from_client = __import__('sealsvc.client', fromlist=['Client'])")
        process.do(f"client = from_client.Client({str(running.socket)!r})")
        process.do(f"reply = client.grant(**{asked!r})")
        process.do("address = mapped()")
        try:
            yield process
        finally:
            process.process.kill()
            process.process.wait()


def nothing_is_left(running: Running, file: Path, intrude: Intrude) -> None:
    """No guard, no lease, no seal: an operation that would meet one goes through at once, the
    strongest seal can be had, and the keeper finds no reason to stay."""
    assert intrude(PUNCH).wait(PATIENCE) == 0
    with Client(str(running.socket)) as client:
        reply = client.grant(path=str(file), prepare=["allocate", "convert"])
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
    running.stop()
    until(lambda: not (running.directory / "keeper.sock").exists())

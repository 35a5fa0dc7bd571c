"""Version N, then N+1, then N again over one keeper, while seals are held, somebody waits for one,
and a ring is attached (docs/upgrade.md)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.protocol.seals import List, Return, SealInfo
from tests.hostile.users import answer, connected
from tests.service import versions
from tests.support.service import RISKS, ROOT, MiB, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

GRACE = 300.0  # seconds: no deadline passes in a test
TRUNCATE = """
import os, sys
try:
    os.truncate(sys.argv[1], 0)
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.fixture
def running(xfs: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [xfs], RISKS)) as made:
        try:
            yield made
        finally:
            made.tree = ROOT


@contextmanager
def files(root: Path, *names: str) -> Iterator[list[Path]]:
    made = [root / f"upgrade-{name}-{os.getpid()}" for name in names]
    for path in made:
        path.write_bytes(os.urandom(MiB))
    os.sync()
    try:
        yield made
    finally:
        for path in made:
            path.unlink()


def truncates(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", TRUNCATE, file])


def serve(running: Running, tree: Path) -> None:
    running.tree = tree
    running.start()
    running.ready()
    with Client(str(running.socket), timeout=PATIENCE) as client:
        version = client.status().version
    assert (version == versions.VERSION) == (tree != ROOT), version


def refuses_to_serve(running: Running, tree: Path) -> str:
    """What the service of `tree` says before it ends."""
    running.tree = tree
    before = len(running.log.read_text())
    running.start()
    assert running.process is not None
    assert running.process.wait(PATIENCE) == 1
    said = running.log.read_text()[before:]
    assert "Traceback" not in said
    return said


def seals(client: Client) -> dict[str, SealInfo]:
    return {seal.id: seal for seal in client.call(List).result.seals}


def goes_on(before: dict[str, SealInfo], after: dict[str, SealInfo]) -> None:
    """Is each seal what it was, with its deadline counting?"""
    assert after.keys() == before.keys()
    for id, seal in after.items():
        was = before[id]
        if was.deadline_in is None:
            assert seal.deadline_in is None
        else:
            assert seal.deadline_in is not None
            assert 0 < seal.deadline_in < was.deadline_in
        assert msgspec.structs.replace(seal, deadline_in=was.deadline_in) == was


@pytest.mark.parametrize("ends", [Running.stop, Running.kill], ids=["stopped", "killed"])
def test_up_and_down(
    running: Running, xfs: Path, tmp_path: Path, ends: Callable[[Running], None]
) -> None:
    socket = str(running.socket)
    later = versions.later(tmp_path / "later")
    with (
        files(xfs, "waits", "refuses", "ring") as (waits, refuses, rung),
        Client(socket, timeout=PATIENCE) as client,
        RingClient(socket, timeout=PATIENCE) as ring,
        rung.open("r+b") as opened,
    ):
        waited = client.grant(path=str(waits), kind="shared", grace=GRACE)
        kept = client.grant(path=str(refuses), kind="shared", conflict="refuse", key="once")
        registered = ring.register(opened.fileno(), grace=GRACE)
        slot = ring.grant(registered, 0, 4096)
        waiter = truncates(waits)
        try:
            until(lambda: seals(client)[waited.seal.id].state == "recalled")
            before = seals(client)
            assert len(before) >= 3
            for tree in (later, ROOT, later, ROOT):
                ends(running)
                # Nobody serves: the keeper goes on, and so does the ring.
                assert truncates(refuses).wait(PATIENCE) == errno.ETXTBSY
                assert slot.valid
                ring.grant(registered, 8192, 4096).give_back()
                serve(running, tree)
                client.reconnect()
                until(lambda: bool(ring.dispatch() or not ring.connected))
                ring.reconnect()
                goes_on(before, seals(client))
                assert waiter.poll() is None
                assert truncates(refuses).wait(PATIENCE) == errno.ETXTBSY
                assert slot.valid
                another = ring.grant(registered, 4096, 4096)
                another.give_back()
                # A request that is repeated over the change is answered as it was before.
                repeated = client.grant(
                    path=str(refuses), kind="shared", conflict="refuse", key="once"
                )
                assert repeated.seal.id == kept.seal.id
                for fd in repeated.fds:
                    os.close(fd)
            os.close(waited.fds[0])
            client.call(Return, seal=waited.seal.id)
            assert waiter.wait(PATIENCE) == 0
        finally:
            waiter.kill()
            waiter.wait()
        slot.refresh()
        slot.give_back()
        ring.unregister(registered)
        os.close(kept.fds[0])
        client.call(Return, seal=kept.seal.id)
        assert seals(client) == {}


def test_a_term_that_the_older_version_does_not_know(
    running: Running, xfs: Path, tmp_path: Path
) -> None:
    """It does not keep a seal on other terms than it was granted on: it says so, and ends; the seal
    stays in force, and the later version goes on with it."""
    later = versions.later(tmp_path / "later")
    running.stop()
    serve(running, later)
    with files(xfs, "term") as (file,):
        sock = connected(str(running.socket))
        asked = {"op": "grant", "id": 1, "path": str(file), "kind": "shared", "later": "yes"}
        sock.send(json.dumps(asked | {"conflict": "refuse"}).encode())
        seal = answer(sock)["result"]["id"]
        running.kill()
        said = refuses_to_serve(running, ROOT)
        assert "another version of sealsvc" in said
        assert "later" in said
        assert truncates(file).wait(PATIENCE) == errno.ETXTBSY
        serve(running, later)
        with Client(str(running.socket), timeout=PATIENCE) as client:
            assert list(seals(client)) == [seal]
            sock.close()
            client.call(Return, seal=seal)
        running.stop()
        serve(running, ROOT)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (versions.of_another_keeper, "does not speak version 99"),
        (versions.of_another_journal, "another version of sealsvc"),
    ],
)
def test_a_version_that_cannot_take_over_changes_nothing(
    running: Running, xfs: Path, tmp_path: Path, other: Callable[[Path], Path], reason: str
) -> None:
    tree = other(tmp_path / "other")
    with files(xfs, "waits") as (file,), Client(str(running.socket), timeout=PATIENCE) as client:
        granted = client.grant(path=str(file), kind="shared", grace=GRACE)
        waiter = truncates(file)
        try:
            until(lambda: seals(client)[granted.seal.id].state == "recalled")
            before = seals(client)
            running.stop()
            assert reason in refuses_to_serve(running, tree)
            assert waiter.poll() is None
            serve(running, ROOT)
            client.reconnect()
            goes_on(before, seals(client))
            os.close(granted.fds[0])
            client.call(Return, seal=granted.seal.id)
            assert waiter.wait(PATIENCE) == 0
        finally:
            waiter.kill()
            waiter.wait()
        # Nothing is kept any more: it may serve.
        if other is versions.of_another_journal:
            running.stop()
            serve(running, tree)
            running.stop()
            serve(running, ROOT)

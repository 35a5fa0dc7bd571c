"""The registry in the service: what became of seals, who asked, maps then and now; and troubles of
its own, that no seal suffers from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.events import Watch
from sealsvc.protocol.history import (
    ConflictHistory,
    History,
    MapChanges,
    PastConflicts,
    SealHistory,
    SealRecord,
    Steps,
    Trail,
    VerifyTrail,
)
from sealsvc.protocol.seals import Extents, List, RecallSeals, Return, Show
from sealsvc.protocol.system import Audit, Status
from sealsvc.registry.archive import Archive
from sealsvc.registry.queries import Queries
from tests.service.test_conflicts import intruding
from tests.service.test_seal_ends import swap_blocks
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

PUNCH = "fallocate(3, 65536, 65536)"


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [root], RISKS)) as made:
        yield made


@contextmanager
def connected(running: Running) -> Iterator[Client]:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        yield client


def granted(client: Client, file: Path, **fields: object) -> str:
    reply = client.grant(path=str(file), **({"kind": "shared", "grace": 200} | fields))
    os.close(reply.fds[0])
    return reply.seal.id


def settled(client: Client) -> None:
    until(lambda: client.call(Status).result.registry.lag == 0)


def record(client: Client, seal: str) -> SealRecord:
    settled(client)
    after = None
    while True:
        page = client.call(History, after=after).result
        assert isinstance(page, SealHistory)
        for found in page.seals:
            if found.id == seal:
                return found
        after = page.next
        assert after is not None, "it is not recorded"


def test_a_life_can_be_read_when_it_is_over(running: Running, file: Path) -> None:
    with connected(running) as client:
        seal = granted(client, file)
        extents = client.call(Extents, seal=seal).result.extents
        with intruding(file, PUNCH) as intruder:
            until(lambda: client.call(Show, seal=seal).seal.state == "recalled")
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0
        settled(client)
        over = record(client, seal)
        assert (over.path, over.state, over.holder_pid) == (str(file), "returned", os.getpid())
        assert over.ended_at is not None
        assert over.asker_uid == os.getuid()
        steps = client.call(Steps, seal=seal).result.transitions
        assert [step.after for step in steps] == ["granted", "recalled", "returned"]
        until(lambda: _conflicts(client, seal).conflicts[0].result is not None)
        (met,) = _conflicts(client, seal).conflicts
        assert (met.pid, met.verdict, met.result) == (intruder.pid, "held", 0)
        assert "punch" in met.operation
        # The map at the grant, and what the punch did to it.
        assert client.call(Extents, seal=seal).result.extents == extents
        changed = client.call(MapChanges, seal=seal).result
        assert changed.changed == 65536
        assert changed.changes[0].range.offset == 65536
        asked = [entry.data for entry in client.call(Trail, kind="asked").result.entries]
        assert [told["operation"] for told in asked] == ["return"]
        assert asked[0]["outcome"] == "done"
        assert client.call(VerifyTrail).result.intact


def _conflicts(client: Client, seal: str) -> ConflictHistory:
    settled(client)
    found = client.call(PastConflicts, seal=seal).result
    assert isinstance(found, ConflictHistory)
    return found


def test_sealctl_tells_it(running: Running, file: Path) -> None:
    def sealctl(*words: str) -> str:
        command = [sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", str(running.socket)]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with connected(running) as client:
        seal = granted(client, file)
        with intruding(file, PUNCH) as intruder:
            until(lambda: client.call(Show, seal=seal).seal.state == "recalled")
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0
        until(lambda: _conflicts(client, seal).conflicts[0].waited is not None)
    (row,) = [line.split() for line in sealctl("history").splitlines() if seal in line]
    assert row[1] == "returned"
    assert row[-1] == str(file)
    told = sealctl("history", seal)
    assert re.search(r"requested +granted", told)
    assert re.search(rf"fallocate-punch-hole 65536:65536 +{intruder.pid}/", told)
    assert "64K in 1 stretches are not as they were" in sealctl("changes", seal)
    assert re.search(rf"asked +{seal}.*return", sealctl("trail", "--kind", "asked"))
    assert "hang together" in sealctl("trail", "--verify")
    (found,) = json.loads(sealctl("history", "--path", str(file), "-o", "json"))["seals"]
    assert found["id"] == seal
    assert sealctl("history", "--path", str(file), "--state", "lost").count("\n") == 1


def test_history_goes_on_behind_a_killed_service(running: Running, file: Path) -> None:
    with connected(running) as client:
        seal, other = granted(client, file, length=65536), granted(client, file, offset=131072)
        settled(client)
    running.kill()
    running.start()
    running.ready()
    with connected(running) as client:
        client.call(Return, seal=other)
        assert record(client, seal).ended_at is None
        assert record(client, other).state == "returned"
        client.call(Return, seal=seal)
        assert record(client, seal).ended_at is not None
        assert client.call(VerifyTrail).result.intact


def test_who_was_refused_is_recorded(running: Running, file: Path) -> None:
    with connected(running) as client:
        seal = granted(client, file)
        assert refusal(lambda: client.grant(path=str(file))).code == "seal-conflict"
        settled(client)
        (entry,) = client.call(Trail, kind="refused").result.entries
        assert entry.data["code"] == "seal-conflict"
        assert entry.data["asker"] == {"pid": os.getpid(), "uid": os.getuid()}
        client.call(Return, seal=seal)


def test_drift_leaves_both_maps_as_evidence(running: Running, file: Path, root: Path) -> None:
    with connected(running) as client:
        seal = granted(client, file)
        swap_blocks(file, "xfs" in str(root))
        assert client.call(Audit, seal=seal).result.drifted
        settled(client)
        found = client.call(MapChanges, seal=seal).result
        assert found.changed >= 65536
        directory = running.directory / "registry"
        queries = Queries(directory, Archive(directory / "maps"))
        ((recorded, present),) = queries.evidence(seal)
        assert recorded is not None
        assert present is not None
        assert recorded[0, 1] != present[0, 1]
        assert found.changes[0].expected != found.changes[0].found
        client.call(Return, seal=seal)


# Who may know what


ASKS = """
import os, sys
os.setgid(65534); os.setuid(65534)
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import *
from sealsvc.protocol.history import *
with Client(sys.argv[1]) as client:
    print(len(client.call(History).result.seals))
    own = {"seal": sys.argv[2]}
    for request, fields in ((Steps, own), (MapChanges, own), (PastConflicts, own), (Extents, own),
                            (PastConflicts, {}), (Trail, {}), (VerifyTrail, {})):
        try:
            client.call(request, **fields)
            print("told")
        except Refusal as refusal:
            print(refusal.code)
"""


def test_others_are_told_of_their_own_seals_alone(running: Running, file: Path) -> None:
    with connected(running) as client:
        seal = granted(client, file)
        client.call(Return, seal=seal)
        settled(client)
        directory = running.directory
        while directory != Path(tempfile.gettempdir()):
            directory.chmod(0o755)
            directory = directory.parent
        done = subprocess.run(
            [sys.executable, "-c", ASKS, str(running.socket), seal],
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.split() == ["0", *["no-such-seal"] * 4, *["denied"] * 3]


# Its troubles


def test_a_full_disk_costs_no_seal(root: Path, file: Path, tmp_path: Path) -> None:
    """The alarm says so, seals are granted and kept, and when there is room again the registry
    knows what lives."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", small], check=True)
    running = Running(tmp_path, [root], f'{RISKS}[registry]\ndirectory = "{small}/registry"\n')
    try:
        running.start()
        running.ready()
        with connected(running) as client:
            settled(client)
            filler = small / "filler"
            with filler.open("wb", buffering=0) as filling:
                try:
                    while True:
                        filling.write(bytes(4096))
                except OSError:
                    pass
            client.call(Watch)
            seals = []
            for at in range(100):
                seals.append(granted(client, file, offset=at * 4096, length=4096))
                if client.call(Status).result.registry.troubles:
                    break
            until(lambda: client.call(Status).result.registry.troubles != [])
            alarms = (push for push in client.pushes(PATIENCE) if push.name == "alarm")
            assert any("registry" in alarm.data["reason"] for alarm in alarms)
            assert len(client.call(List, limit=1000).result.seals) >= 1
            client.call(Return, seal=seals.pop())
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
            next(push for push in client.pushes(PATIENCE) if push.name == "recorded")
            settled(client)
            for seal in seals:
                assert record(client, seal).ended_at is None
            client.call(RecallSeals, all=True)
            for seal in seals:
                client.call(Return, seal=seal)
    finally:
        running.end()
        subprocess.run(["umount", small], check=True)


def test_a_registry_that_cannot_be_made_keeps_nobody_from_serving(
    root: Path, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no directory")
    running = Running(tmp_path, [root], f'{RISKS}[registry]\ndirectory = "{tmp_path}/file/r"\n')
    running.start()
    try:
        running.ready()
        with connected(running) as client:
            client.call(Return, seal=granted(client, file))
            until(lambda: client.call(Status).result.registry.troubles != [])
    finally:
        running.end()

"""SIGKILL at every step there is: no sealed block moves, and what is left is a seal or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.admin import Jobs, JobState
from sealsvc.protocol.relocation import Goal, Quiesce, Relocate
from sealsvc.protocol.seals import List, Recall, RecallSeals, Reclaim, Return
from sealsvc.protocol.system import Audit
from sealsvc.runtime import faults
from tests.faults.conftest import (
    LEGAL,
    PUNCH,
    Intrude,
    blocks,
    fencing,
    granted,
    holding,
    nothing_is_left,
    recall_of,
    serve,
)
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

# From these on the next service has to know the seal, or to know that it is over.
GRANTED = {"grant:journalled", "grant:published", "grant:answered"}
OVER = {"return:journalled", "end:removed", "end:released", "return:answered"}


@dataclass
class Scene:
    point: str
    running: Running
    file: Path
    intrude: Intrude

    def serve_until_killed(self, provoke: Callable[[Client], object]) -> None:
        """`provoke` with the fault in force; it may fail, as the service dies in it."""
        self.serve()
        with suppress(Refusal), Client(str(self.running.socket), timeout=PATIENCE) as client:
            provoke(client)
        self.died()

    def serve(self) -> None:
        serve(self.running, f"{self.point}=kill")
        self.running.ready()

    def died(self) -> None:
        assert self.running.process is not None
        process = self.running.process
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        assert process.returncode == -signal.SIGKILL, f"{self.point} was not reached"

    def restart(self) -> None:
        serve(self.running)
        self.running.ready()

    def seals(self) -> dict[str, str]:
        with Client(str(self.running.socket)) as client:
            return {seal.id: seal.state for seal in client.call(List).result.seals}

    def given_back_after_restart(self, before: list[list[int]], seal: str) -> None:
        """The seal is there and keeps its promise, until its holder reclaims and returns it."""
        intruder = self.intrude(PUNCH)
        time.sleep(0.1)
        assert intruder.poll() is None
        assert blocks(self.file) == before
        self.restart()
        assert self.seals().keys() == {seal}
        assert self.seals()[seal] in LEGAL
        with Client(str(self.running.socket)) as client:
            client.call(Reclaim, seal=seal)
            assert recall_of(client, seal).seal == seal
            assert intruder.poll() is None
            assert blocks(self.file) == before
            client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0
        assert blocks(self.file) != before
        assert self.seals() == {}

    def gone_after_restart(self) -> None:
        """Nobody was promised anything: whoever waits for what is left, waits for the restart."""
        intruder = self.intrude(PUNCH)
        self.restart()
        assert self.seals() == {}
        assert intruder.wait(PATIENCE) == 0


def killed_in_a_grant(scene: Scene) -> None:
    before = blocks(scene.file)
    scene.serve_until_killed(lambda client: granted(client, scene.file))
    assert blocks(scene.file) == before
    if scene.point not in GRANTED:
        scene.gone_after_restart()
        return
    scene.restart()
    (seal,) = scene.seals()
    scene.running.kill()
    scene.given_back_after_restart(before, seal)


def killed_in_a_recall(scene: Scene) -> None:
    before, seals = blocks(scene.file), []

    def provoke(client: Client) -> None:
        seals.append(granted(client, scene.file))
        intruder = scene.intrude(PUNCH)
        scene.died()
        assert intruder.poll() is None

    scene.serve_until_killed(provoke)
    scene.given_back_after_restart(before, seals[0])


def killed_in_an_operators_recall(scene: Scene) -> None:
    before, seals = blocks(scene.file), []

    def provoke(client: Client) -> None:
        seals.append(granted(client, scene.file))
        client.call(RecallSeals, all=True)

    scene.serve_until_killed(provoke)
    scene.given_back_after_restart(before, seals[0])


def killed_in_a_return(scene: Scene) -> None:
    before, seals, waiting = blocks(scene.file), [], []

    def provoke(client: Client) -> None:
        seals.append(granted(client, scene.file))
        waiting.append(scene.intrude(PUNCH))
        recall_of(client, seals[0])
        assert waiting[0].poll() is None
        client.call(Return, seal=seals[0])

    scene.serve_until_killed(provoke)
    if scene.point not in OVER:
        assert waiting[0].poll() is None
        scene.given_back_after_restart(before, seals[0])
        return
    scene.restart()
    assert scene.seals() == {}
    assert waiting[0].wait(PATIENCE) == 0


def killed_in_a_partial_return(scene: Scene) -> None:
    """What was not returned is sealed, whether the service knew of the rest or not."""
    before, seals = blocks(scene.file), []

    def provoke(client: Client) -> None:
        seals.append(granted(client, scene.file))
        client.call(Return, seal=seals[0], range=ByteRange(131072, 131072))

    scene.serve_until_killed(provoke)
    scene.given_back_after_restart(before, seals[0])


def killed_in_a_fence(scene: Scene) -> None:
    """The holder is stopped by none of this: the next service fences it."""
    before = blocks(scene.file)
    scene.serve()
    with holding(scene.file, scene.running, fence="kill", grace=0.3) as holder:
        holder.do("__import__('signal').signal(15, 1) and None")  # SIGTERM does not help
        intruder = scene.intrude(PUNCH)
        scene.died()
        time.sleep(0.1)
        assert intruder.poll() is None
        assert blocks(scene.file) == before
        scene.restart()
        assert holder.process.wait(PATIENCE) == -signal.SIGKILL
        assert intruder.wait(PATIENCE) == 0
    until(lambda: scene.seals() == {})


def killed_as_a_fence_fails(scene: Scene) -> None:
    """A child has the holder's mapping: the fence cannot prove anything while it lives."""
    before = blocks(scene.file)
    fencing(scene.running, proof_timeout=0.5)
    scene.serve()
    with holding(scene.file, scene.running, fence="kill", grace=0.3) as holder:
        child = holder.do("os.fork() or os.kill(os.getpid(), 19)")
        try:
            scene.intrude(PUNCH)
            scene.died()
            assert blocks(scene.file) == before
            scene.restart()
            assert set(scene.seals().values()) == {"fence-failed"}
            until(lambda: scene.intrude(PUNCH).wait(PATIENCE) == 16)  # EBUSY
            assert blocks(scene.file) == before
        finally:
            os.kill(child, signal.SIGKILL)
    until(lambda: scene.seals() == {})


def killed_as_a_holder_exits(scene: Scene) -> None:
    before = blocks(scene.file)
    scene.serve()
    with holding(scene.file, scene.running, grace=200) as holder:
        child = holder.do("os.fork() or os.kill(os.getpid(), 19)")
        try:
            holder.process.kill()
            scene.died()
            intruder = scene.intrude(PUNCH)
            scene.restart()
            until(lambda: set(scene.seals().values()) == {"orphaned"})
            assert intruder.poll() is None
            assert blocks(scene.file) == before
        finally:
            os.kill(child, signal.SIGKILL)
    until(lambda: scene.seals() == {})
    assert intruder.wait(PATIENCE) == 0


def killed_in_a_start(scene: Scene) -> None:
    before = blocks(scene.file)
    scene.restart()
    with Client(str(scene.running.socket)) as client:
        seal = granted(client, scene.file)
    scene.running.kill()
    serve(scene.running, f"{scene.point}=kill")
    scene.died()
    scene.given_back_after_restart(before, seal)


def killed_in_a_reclaim(scene: Scene) -> None:
    before, seals = blocks(scene.file), []
    scene.restart()
    with Client(str(scene.running.socket)) as client:
        seals.append(granted(client, scene.file))
    scene.running.kill()
    scene.serve_until_killed(lambda client: client.call(Reclaim, seal=seals[0]))
    scene.given_back_after_restart(before, seals[0])


def killed_in_a_relocation(scene: Scene) -> None:
    """The next service goes on with the seal, on the map that the file has, and begins anew."""
    data, path = scene.file.read_bytes(), str(scene.file)
    scene.serve()
    with Client(str(scene.running.socket), timeout=PATIENCE) as client:
        seal = granted(client, scene.file)
        with suppress(Refusal):
            client.call(Relocate, path=path, goal=Goal(to=str(scene.file.parent)), grace=200)
            _quiesce(client, seal)
    scene.died()
    assert scene.file.read_bytes() == data
    scene.restart()
    with Client(str(scene.running.socket)) as client:
        client.call(Reclaim, seal=seal)
        _quiesce(client, seal)
        jobs = client.call(Jobs).result.jobs
        (job,) = [job for job in jobs if job.state is not JobState.INTERRUPTED]
        assert (job.kind, job.state) == ("relocate", "done"), job
        assert not client.call(Audit).result.drifted
        assert scene.seals() == {seal: "granted"}
        client.call(Return, seal=seal)
    assert scene.file.read_bytes() == data
    assert not list(scene.running.directory.glob("registry/relocations/*"))


def _quiesce(client: Client, seal: str) -> None:
    """As the holder does, until the relocation is over."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for push in client.pushes(0.1):
            if isinstance(push, Recall) and push.quiesce:
                client.call(Quiesce, seal=seal)
        if all(job.state != "running" for job in client.call(Jobs).result.jobs):
            return


SCENES: dict[str, Callable[[Scene], None]] = {
    "grant": killed_in_a_grant,
    "recall": killed_in_a_recall,
    "recallseals": killed_in_an_operators_recall,
    "return": killed_in_a_return,
    "end": killed_in_a_return,
    "shrink": killed_in_a_partial_return,
    "step": killed_in_a_recall,
    "fence": killed_in_a_fence,
    "escalate": killed_in_a_fence,
    "proven": killed_in_a_fence,
    "unproven": killed_as_a_fence_fails,
    "relocate": killed_in_a_relocation,
    "holder-exit": killed_as_a_holder_exits,
    "start": killed_in_a_start,
    "reclaim": killed_in_a_reclaim,
}


# Those of protection information are killed at in tests/integrity/test_crash_pi.py.
HERE = [point for point in faults.POINTS if not point.startswith("integrity:")]


@pytest.mark.parametrize("point", HERE)
def test_killed_at(point: str, running: Running, file: Path, intrude: Intrude) -> None:
    scene = SCENES.get(point) or SCENES[point.split(":")[0]]
    scene(Scene(point, running, file, intrude))
    nothing_is_left(running, file, intrude)

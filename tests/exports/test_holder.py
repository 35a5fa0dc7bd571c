"""The holder of a device that the kernel serves, and its guard: what they ask of it, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sealsvc.client import Client
from sealsvc.exports.base import Spec
from sealsvc.exports.runtime import Runtime
from sealsvc.exports.stats import read_stats
from sealsvc.protocol.seals import List
from tests.exports.conftest import MiB
from tests.exports.exporting import relocating
from tests.support.service import ROOT, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


class Held:
    """A holder as a process, and what it notes."""

    def __init__(self, runtime: Runtime, image: Path, running: Running, **terms: object) -> None:
        self.runtime, self.running = runtime, running
        self.spec = Spec(
            name="disk", type="noted", file=str(image), socket=str(running.socket), **terms
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        device = ROOT / "tests" / "exports" / "noted_device.py"
        self.process = subprocess.Popen(
            [sys.executable, device, msgspec.json.encode(self.spec).decode(), *more],
            env=os.environ
            | {"SEALSVC_EXPORTS": str(self.runtime.directory), "PYTHONPATH": str(ROOT)},
        )
        until(self.serves, what="the device")
        return self.process

    def serves(self, after: int = 0) -> bool:
        """By another process than `after`."""
        assert self.process is not None
        assert self.process.poll() is None
        ours = [self.process.pid, *(_children(self.process.pid) if self.spec.restart else [])]
        stats = read_stats(self.runtime.stats("disk"))
        if stats is None or stats.pid == after or stats.pid not in ours:
            return False
        return stats.state == "serving"

    def notes(self) -> list[str]:
        return (self.runtime.directory / "disk.notes").read_text().splitlines()

    def seals(self) -> list[str]:
        with Client(str(self.running.socket)) as client:
            return [seal.id for seal in client.call(List).result.seals]


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    made = Runtime(str(tmp_path / "exports"))
    made.make()
    return made


@contextmanager
def held(runtime: Runtime, image: Path, running: Running, **terms: object) -> Iterator[Held]:
    made = Held(runtime, image, running, **terms)
    made.start()
    try:
        yield made
    finally:
        record = runtime.find("disk")
        runtime.record("disk").unlink(missing_ok=True)  # a guard that waits may go
        made.process.kill()
        made.process.wait()
        if record is not None and record.lives:
            os.kill(record.pid, signal.SIGKILL)
        until(lambda: made.seals() == [], what="the end of its seals")


def test_a_recall_is_in_order_and_the_next_map_is_the_new_one(
    runtime: Runtime, image: Path, running: Running
) -> None:
    with held(runtime, image, running) as holder:
        first = holder.notes()
        with relocating(image, 3, 16 * MiB, runtime):
            pass
        until(lambda: len(holder.notes()) >= 7, what="the third pause")
        until(holder.serves)
        notes = holder.notes()
        assert first[0].startswith("create ")
        assert [note.split()[0] for note in notes[1:7]] == ["recall", "resume"] * 3
        places = {note.split()[1] for note in notes if " " in note}
        assert len(places) > 1, "the file was not moved: the test shows nothing"
        holder.process.terminate()
        assert holder.process.wait(PATIENCE) == 0
        assert holder.notes()[-1] == "delete"
        assert holder.seals() == []


def test_the_seal_of_a_killed_holder_stands_until_the_guard_has_held_the_device(
    runtime: Runtime, image: Path, running: Running
) -> None:
    with held(runtime, image, running) as holder:
        os.kill(holder.process.pid, signal.SIGSTOP)
        truncating = subprocess.Popen(
            [sys.executable, "-c", "import os, sys; os.truncate(sys.argv[1], 4096)", image]
        )
        until(lambda: _state(running) == "recalled")
        holder.process.kill()
        holder.process.wait()
        assert truncating.wait(PATIENCE) == 0
        # What the guard saw of the file when it held the device: it was whole.
        assert holder.notes()[1:] == [f"hold {16 * MiB}"]
        assert image.stat().st_size == 4096


def test_requests_wait_for_a_recovery_and_fail_without_one(
    runtime: Runtime, image: Path, running: Running
) -> None:
    with held(runtime, image, running, grace=1.0, initiator_timeout=60.0) as holder:
        holder.process.kill()
        holder.process.wait()
        until(lambda: len(holder.notes()) == 2)
        holder.spec = msgspec.structs.replace(holder.spec, initiator_timeout=2.0)
        holder.start("--recover")
        assert [note.split()[0] for note in holder.notes()[1:]] == ["hold", "remember", "create"]
        holder.process.kill()
        holder.process.wait()
        until(lambda: holder.notes()[-1] == "fence")


def test_a_supervised_holder_is_started_again_and_takes_the_device_over(
    runtime: Runtime, image: Path, running: Running
) -> None:
    with held(runtime, image, running, restart=True) as holder:
        for _ in range(2):
            pid = runtime.read("disk").pid
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: holder.serves(pid), what="another holder")
        words = [note.split()[0] for note in holder.notes()]
        assert words == ["create", *["hold", "remember", "create"] * 2]
        holder.process.terminate()
        assert holder.process.wait(PATIENCE) == 0
        assert holder.notes()[-1] == "delete"
        assert not runtime.read("disk").lives
        assert holder.seals() == []


def test_it_lives_on_without_the_service_and_obeys_the_next(
    runtime: Runtime, image: Path, running: Running
) -> None:
    with held(runtime, image, running) as holder:
        before = holder.seals()
        running.kill()
        running.start()
        running.ready()
        assert holder.seals() == before
        with relocating(image, 1, MiB):
            pass
        until(lambda: "resume" in holder.notes()[-1])
        until(holder.serves)
        assert holder.seals() != before


def test_a_guard_that_was_killed_is_replaced(
    runtime: Runtime, image: Path, running: Running
) -> None:
    with held(runtime, image, running) as holder:
        (guard,) = _children(holder.process.pid)
        os.kill(guard, signal.SIGKILL)
        until(lambda: _children(holder.process.pid) not in ([guard], []))
        with relocating(image, 1, MiB):
            pass
        until(lambda: "resume" in holder.notes()[-1])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _state(running: Running) -> str:
    with Client(str(running.socket)) as client:
        (seal,) = client.call(List).result.seals
        return str(seal.state)

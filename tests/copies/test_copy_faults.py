"""The fault table: whatever fails in the middle of a copy, what was reported is what is on disk."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sealsvc.client import Client
from sealsvc.copies import Options, Result, make_plan, run
from sealsvc.protocol.admin import JobState, ShowJob
from sealsvc.protocol.seals import List
from tests.copies.conftest import MiB, opened, pattern
from tests.copies.stacks import Layers, filled, shut_down
from tests.copies.test_copy_jobs import descriptors, ended, start
from tests.copies.test_lower import as_if_sealed
from tests.support.scratch import PREFIX
from tests.support.waiting import until

pytestmark = pytest.mark.kernel

SIZE = 8 * MiB
STRATEGIES = ("lower", "range", "direct", "plain")


@pytest.fixture
def layers(request: pytest.FixtureRequest) -> Iterator[Layers]:
    """With the upper file system that the test names."""
    kind = request.node.callspec.params["kind"]
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        made = Layers(Path(directory), "xfs", kind)
        try:
            yield made
        finally:
            made.down()


def is_old_or_new(found: bytes, old: bytes, new: bytes) -> bool:
    """Each sector."""
    size = 512
    return all(
        found[at : at + size] in (old[at : at + size], new[at : at + size])
        for at in range(0, len(found), size)
    )


def interrupted(layers: Layers, strategy: str, victim: str) -> tuple[Result, bytes, bytes]:
    """A copy of which the file system `victim` is shut down after the first call."""
    new, old = pattern(SIZE), pattern(SIZE, seed=2)
    a, b = filled(layers.above / "a", new), filled(layers.above / "b", old)
    os.sync()
    point = {"upper": layers.above, "lower": layers.below}[victim]

    def fail(done: int, _all: int, _name: str) -> None:
        if done == SIZE // 4:
            shut_down(point)

    with opened(a, b) as ends:
        held = as_if_sealed(ends) if strategy == "lower" else ends
        options = Options(only=(strategy,), throttle=2 * SIZE)
        return run(make_plan(held, options), progress=fail), old, new


@pytest.mark.parametrize("victim", ["upper", "lower"])
@pytest.mark.parametrize(
    ("kind", "strategy"), [(kind, strategy) for kind in ("ext4", "xfs") for strategy in STRATEGIES]
)
def test_a_file_system_that_goes_down(
    layers: Layers, kind: str, strategy: str, victim: str
) -> None:
    result, old, new = interrupted(layers, strategy, victim)
    # A lower clone with the upper file system gone may still end; only its flush cannot.
    assert not result.whole
    assert not result.durable
    assert result.errno in (errno.EIO, errno.EROFS, errno.EUCLEAN)
    assert result.done == 0, "nothing is known to be on the device after a failed flush"
    layers.again()
    assert (layers.above / "a").read_bytes() == new
    assert is_old_or_new((layers.above / "b").read_bytes(), old, new)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_durable_before_the_fault_stays(layers: Layers, kind: str) -> None:
    """A cancelled, and so flushed, part; then both file systems are lost without their logs."""
    new, old = pattern(SIZE), pattern(SIZE, seed=2)
    a, b = filled(layers.above / "a", new), filled(layers.above / "b", old)
    os.sync()
    with opened(a, b) as ends:
        options = Options(length=SIZE // 2, only=("lower",), strict=True)
        result = run(make_plan(as_if_sealed(ends), options))
    assert result.whole
    assert result.durable
    shut_down(layers.above)
    shut_down(layers.below)
    layers.again()
    assert (layers.above / "b").read_bytes() == new[: SIZE // 2] + old[SIZE // 2 :]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_copier_that_is_killed(socket: str, reference: Path, strategy: str) -> None:
    """Its seals end with it; the last progress it told is true; the copy can be made again."""
    new, old = pattern(SIZE), pattern(SIZE, seed=2)
    a = filled(reference / f"killed-{strategy}-a", new)
    b = filled(reference / f"killed-{strategy}-b", old)
    seals = strategy == "lower"
    with Client(socket) as client:
        with descriptors(a, b) as fds:
            job = start(client, fds, strategies=[strategy], throttle=SIZE // 16, seals=seals)
        until(lambda: client.call(ShowJob, job=job.id).result.done >= SIZE // 16)
        for process in psutil.Process().children(recursive=True):
            if "sealsvc.copies" in process.cmdline():
                process.send_signal(signal.SIGKILL)
        job = ended(client, job)
        assert job.state is JobState.FAILED
        assert "the copying process ended" in job.error
        until(lambda: not client.call(List).result.seals, what="the end of its seals")
        found = b.read_bytes()
        assert found[: job.done] == new[: job.done]
        assert is_old_or_new(found, old, new)
        with descriptors(a, b) as fds:
            job = start(client, fds, strategies=[strategy], seals=seals)
        again = ended(client, job)
    assert again.result["whole"]
    assert b.read_bytes() == new

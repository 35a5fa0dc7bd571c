"""A relocation that fails in the middle leaves the file, its bytes and its seals as they were."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.admin import JobInfo, JobState, ShowJob
from sealsvc.protocol.relocation import Goal, Relocate
from sealsvc.protocol.seals import Extents, Return, Show
from tests.copies.relocating import ended, fragmented, granted, relocated
from tests.copies.stacks import Layers, shut_down
from tests.support.scratch import PREFIX
from tests.support.service import RISKS, Running, served
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PIECES = 256  # of 64 KiB


@pytest.fixture(params=["xfs", "ext4"])
def layers(request: pytest.FixtureRequest) -> Iterator[Layers]:
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        made = Layers(Path(directory), "xfs", request.param)
        try:
            yield made
        finally:
            made.down()


def test_without_room_for_a_second_copy(layers: Layers, tmp_path: Path) -> None:
    """The map that the holder was told stays true, and what was taken meanwhile is given back."""
    file, ballast = layers.above / "f", layers.above / "ballast"
    data = fragmented(file, PIECES)
    free = os.statvfs(layers.above)
    with ballast.open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, free.f_bfree * free.f_frsize - len(data) // 2)
    before = os.statvfs(layers.above).f_bfree
    with (
        served(Running(tmp_path, [layers.above], RISKS)) as running,
        Client(str(running.socket)) as client,
    ):
        reply = granted(client, file)
        os.close(reply.fds[0])
        told = client.call(Extents, seal=reply.seal.id).result
        job = relocated(client, file, Goal(to=str(layers.above)))
        assert job.state is JobState.FAILED
        assert "No space left" in job.error
        assert client.call(Show, seal=reply.seal.id).seal.state == "granted"
        assert client.call(Extents, seal=reply.seal.id).result == told
        client.call(Return, seal=reply.seal.id)
    assert file.read_bytes() == data
    assert os.statvfs(layers.above).f_bfree == before


@pytest.mark.parametrize("victim", ["upper", "lower"])
def test_a_file_system_that_goes_down(layers: Layers, victim: str, tmp_path: Path) -> None:
    """Whether the exchange came before or not: after the recovery every byte is there."""
    file = layers.above / "f"
    data = fragmented(file, PIECES)
    os.sync()
    with (
        served(Running(tmp_path, [layers.above], RISKS)) as running,
        Client(str(running.socket)) as client,
    ):
        begun = client.call(Relocate, path=str(file), goal=Goal(to=str(layers.above))).result
        assert isinstance(begun, JobInfo)
        job = begun

        def under_way() -> bool:
            nonlocal job
            job = client.call(ShowJob, job=begun.id).result  # type: ignore[assignment]
            return job.done > 0 or job.state is not JobState.RUNNING

        until(under_way)
        shut_down({"upper": layers.above, "lower": layers.below}[victim])
        job = ended(client, begun.id)
        assert job.state in (JobState.FAILED, JobState.DONE), job
        assert job.state is JobState.DONE or job.error
    layers.again()
    assert file.read_bytes() == data

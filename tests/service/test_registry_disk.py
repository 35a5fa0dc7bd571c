"""The registry's disk may be full, read-only, hanging, unreadable, damaged or gone: grants go on,
nothing ends, and when the disk is well again the trail says what it lost. How much slower grants
are meanwhile is measured by `python -m tests.bench.registry_disk`."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.history import History, Trail, VerifyTrail
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Status
from tests.support.registry_disk import (
    FAULTS,
    Disk,
    Mend,
    damaged,
    failing,
    grants,
    hanging,
    read_only,
    removed,
    scratch_disk,
)
from tests.support.service import RISKS, MiB, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]

SECONDS = 0.5
# What the trail says of the time of trouble. A disk that is only full or slow loses nothing. A new
# database may have the inode of one that was removed, and is then not told as another.
SAYS = {
    read_only: ("Read-only file system", "is a new one"),
    failing: ("Input/output error", "is a new one"),
    damaged: ("a new one is begun",),
    removed: ("was taken away",),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with scratch_disk(tmp_path) as made:
        yield made


@pytest.fixture
def running(xfs: Path, disk: Disk, tmp_path: Path) -> Iterator[Running]:
    registry = f'[registry]\ndirectory = "{disk.registry}"\n'
    with served(Running(tmp_path, [xfs], RISKS + registry)) as made:
        yield made


@pytest.fixture
def file(xfs: Path) -> Iterator[Path]:
    made = xfs / f"registry-faults-{os.getpid()}"
    made.write_bytes(os.urandom(MiB))
    os.sync()
    yield made
    made.unlink()


def told_in_trail(client: Client, said: str) -> bool:
    """Whether the trail says it of a time of trouble."""
    try:
        entries = client.call(Trail, kind="lost").result.entries
    except Refusal:  # the registry is not there yet
        return False
    return any(said in reason for entry in entries for reason in entry.data["reasons"])


@pytest.mark.parametrize("fault", FAULTS)
def test_grants_go_on(
    running: Running, disk: Disk, file: Path, fault: Callable[[Disk], Mend]
) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        grants(client, file, SECONDS)
        until(lambda: client.call(Status).result.registry.lag == 0, 30)
        mend = fault(disk)
        try:
            grants(client, file, SECONDS)
            assert client.call(Status).result.pid
        finally:
            mend()
        grants(client, file, SECONDS)
        for said in SAYS.get(fault, ()):
            told = functools.partial(told_in_trail, client, said)
            until(told, 60, f"{said!r} in the trail")
        grants(client, file, SECONDS)
        until(lambda: client.call(Status).result.registry.lag == 0, 60)
        assert client.call(Status).result.registry.troubles == []
        assert len(client.call(History).result.seals) > 40, "a page of them"
        assert client.call(VerifyTrail).result.intact
    assert running.process is not None
    assert running.process.poll() is None


def test_the_next_service_takes_over_while_the_disk_hangs(
    running: Running, disk: Disk, file: Path
) -> None:
    """The dead service's registry process is stuck in the kernel: the keeper is not its."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        granted = client.grant(path=str(file), kind="shared")
        os.close(granted.fds[0])
        thaw = hanging(disk)
        try:
            os.close(client.grant(path=str(file), kind="shared").fds[0])
            time.sleep(0.5)
            running.kill()
            running.start()
            running.ready()
            client.reconnect(10.0)
            client.call(Return, seal=granted.seal.id)
        finally:
            thaw()
        until(lambda: client.call(Status).result.registry.lag == 0, PATIENCE)
        assert client.call(VerifyTrail).result.intact

"""Two services on one file system, as a host's and a container's: neither waits for the other."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Return
from tests.support.service import RISKS, MiB, Running
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

ROUNDS = 12
# An operation of one that the other's gate refused outside of a grant may be an io-error.
EXPECTED = ("try-later", "file-in-use", "io-error")


@pytest.fixture
def both(xfs: Path, tmp_path: Path) -> Iterator[list[Running]]:
    with ExitStack() as stack:
        made = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            made.append(Running(tmp_path / name, [xfs], RISKS))
            made[-1].start()
            stack.callback(made[-1].end)
            made[-1].ready()
        yield made


@pytest.fixture
def file(xfs: Path) -> Iterator[Path]:
    made = xfs / f"two-services-{os.getpid()}"
    made.write_bytes(os.urandom(MiB))
    os.sync()
    yield made
    made.unlink()


def test_they_grant_on_one_file_at_once(both: list[Running], file: Path) -> None:
    together = threading.Barrier(2)
    outcomes: list[str] = []
    said: list[str] = []

    def act(running: Running) -> None:
        with Client(str(running.socket), timeout=PATIENCE) as client:
            for _ in range(ROUNDS):
                try:
                    together.wait(PATIENCE)
                    granted = client.grant(path=str(file), kind="exclusive")
                    os.close(granted.fds[0])
                    client.call(Return, seal=granted.seal.id)
                    outcomes.append("granted")
                except Refusal as refusal:
                    outcomes.append(refusal.code)
                    if refusal.code not in EXPECTED:
                        said.append(f"{refusal}: {refusal.details}")
                except (TimeoutError, threading.BrokenBarrierError):
                    together.abort()
                    outcomes.append("stuck")
                    return

    threads = [threading.Thread(target=act, args=(running,)) for running in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2 * ROUNDS
    assert not said
    # Each may see the other's descriptor every time, and refuse. One after the other they grant.
    for running in both:
        with Client(str(running.socket), timeout=PATIENCE) as client:
            granted = client.grant(path=str(file), kind="exclusive")
            os.close(granted.fds[0])
            client.call(Return, seal=granted.seal.id)
    # Nothing of either is left in force.
    subprocess.run(["head", "-c1", file], stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE)

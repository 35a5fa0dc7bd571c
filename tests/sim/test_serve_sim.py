"""`sealsvc serve --sim`: the whole daemon, as a process, for a user who is not root."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Recall, Return
from sealsvc.protocol.system import ServiceStatus, Simulate, Simulated, Status
from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "control.sock"
    command = [sys.executable, "-m", "sealsvc.cli.service", "serve", "--sim", "--socket", str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        until(lambda: path.exists() or process.poll() is not None)
        assert process.poll() is None
        yield str(path)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_simulated_conflict_waits_for_the_return(socket: str) -> None:
    with Client(socket, timeout=PATIENCE) as client, Client(socket, timeout=PATIENCE) as script:
        status = client.call(Status).result
        assert isinstance(status, ServiceStatus)
        assert status.simulated
        reply = client.grant(path="/sim/file", length=1 << 20)
        results: list[dict[str, object]] = []

        def intrude() -> None:
            answer = script.call(
                Simulate, action="conflict", path="/sim/file", offset=0, length=4096, pid=1
            ).result
            assert isinstance(answer, Simulated)
            results.append(answer.result)

        intruder = threading.Thread(target=intrude)
        intruder.start()
        recall = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
        assert recall.seal == reply.seal.id
        assert not results
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
        intruder.join(PATIENCE)
        assert results[0]["result"] == "passed"

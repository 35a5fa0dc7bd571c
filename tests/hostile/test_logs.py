"""Nobody reads the log: the service answers, keeps its deadlines, and ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Status
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release
from tests.support.service import RISKS, ROOT, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


def test_a_full_pipe_at_stderr(root: Path, place: Path, file: Path) -> None:
    running = Running(place, [root], RISKS + "[fence]\nsignal_grace = 0.5\n")
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    while True:
        try:
            os.write(theirs, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(theirs, True)
    process = running.process = subprocess.Popen(
        [sys.executable, "-m", "sealsvc.cli.service", "serve", "--config", running.config],
        cwd=ROOT,
        stderr=theirs,
        env={k: v for k, v in os.environ.items() if k != "SEALSVC_SOCKET"},
    )
    os.close(theirs)
    try:
        running.ready()
        with Client(str(running.socket), timeout=PATIENCE) as client:
            for _ in range(50):  # each alarm is a line of the log
                client.call(Status)
            reply = client.grant(path=str(file), kind="shared", grace=1.0)
            intruder = subprocess.Popen(["truncate", "-s", "0", file], stderr=subprocess.DEVNULL)
            until(lambda: intruder.poll() is not None, what="the deadline")
            os.close(reply.fds[0])
            client.call(Return, seal=reply.seal.id)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
        release(ServiceSection(socket=str(running.socket)))
        until(lambda: not (place / "keeper.sock").exists())

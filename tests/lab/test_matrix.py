"""The service on each kernel, on persistent memory: the best enforcer there is, and fail-closed."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Recall, Reclaim, Return
from sealsvc.protocol.system import Status
from tests.lab.plugin import INSIDE
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE

MiB = 1 << 20
GATE = (6, 14)  # pre-content events
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], 4096)"
MAP_SHARED_VALIDATE, MAP_SYNC, MAP_POPULATE = 0x03, 0x80000, 0x8000

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.fixture(params=["xfs", "ext4"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    with mounted_dax(request.param, reflink=request.param == "xfs") as point:
        yield point


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    # A start of the service, which the holder waits for, takes a minute here when all is busy.
    Path("/proc/sys/fs/lease-break-time").write_text("300")
    with served(Running(tmp_path, [root], RISKS)) as made:
        yield made


def has_gate() -> bool:
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1])) >= GATE


@pytest.mark.parametrize("lab_kernel", ["6.18", "6.12", "6.1"])
def test_a_truncation_waits_for_the_holder(running: Running, root: Path, lab_kernel: str) -> None:
    assert INSIDE
    path = root / "file"
    path.write_bytes(os.urandom(MiB))
    with Client(str(running.socket), timeout=PATIENCE) as client:
        available = [e.name for e in client.call(Status).result.enforcers if e.available]
        reply = client.grant(path=str(path), grace=250, fence="signal", prepare=["allocate"])
        first = reply.seal.enforcers[0]
        assert first == ("fanotify" if has_gate() else "lease")
        assert first in available
        mapping = mmap.mmap(reply.fds[0], MiB, flags=MAP_SHARED_VALIDATE | MAP_SYNC | MAP_POPULATE)
        os.close(reply.fds[0])
        intruder = subprocess.Popen([sys.executable, "-c", TRUNCATE, path])
        try:
            recall = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
            assert recall.seal == reply.seal.id
            running.kill()
            time.sleep(0.3)
            assert intruder.poll() is None
            mapping[:4] = b"mine"  # the mapping is as good as ever
            running.start()
            running.ready()
            client.reconnect(PATIENCE)
            assert client.call(Reclaim, seal=reply.seal.id).seal.state == "recalled"
            assert intruder.poll() is None
            mapping.close()
            client.call(Return, seal=reply.seal.id)
            assert intruder.wait(PATIENCE) == 0
        finally:
            intruder.kill()
            intruder.wait()
    assert path.stat().st_size == 4096
    assert path.read_bytes()[:4] == b"mine"


def truncated(path: Path) -> int:
    return subprocess.run([sys.executable, "-c", TRUNCATE, path], check=False).returncode


@pytest.mark.parametrize("lab_kernel", ["6.18", "6.1"])
def test_refusals_in_the_kernel_outlive_the_service(
    running: Running, root: Path, lab_kernel: str
) -> None:
    path = root / "file"
    path.write_bytes(os.urandom(MiB))
    with Client(str(running.socket), timeout=PATIENCE) as client:
        reply = client.grant(path=str(path), kind="shared", conflict="refuse")
        os.close(reply.fds[0])
        assert "bpf" in reply.seal.enforcers
        assert truncated(path) != 0
        running.kill()
        assert truncated(path) != 0
        running.start()
        running.ready()
        client.reconnect(PATIENCE)
        assert client.call(Reclaim, seal=reply.seal.id).seal.state == "granted"
        assert truncated(path) != 0
        assert path.stat().st_size == MiB
        client.call(Return, seal=reply.seal.id)
        assert truncated(path) == 0

        path.write_bytes(os.urandom(MiB))
        os.close(client.grant(path=str(path), kind="shared", conflict="refuse").fds[0])
        running.kill()
    command = [sys.executable, "-m", "sealsvc.cli.service", "release", "--all", "--config"]
    subprocess.run([*command, running.config], check=True)
    assert truncated(path) == 0

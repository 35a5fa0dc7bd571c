"""The examples, run: a real RDMA region and a real hypervisor as holders on persistent memory."""

from __future__ import annotations

import os
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List, SealInfo
from tests.lab.pmem import mounted_dax
from tests.service.test_hypervisor import guest_gives_back
from tests.support.service import Running, served
from tests.support.waiting import PATIENCE, until

EXAMPLES = Path(__file__).parents[2] / "examples"
MiB = 1 << 20
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], int(sys.argv[2]))"

pytestmark = [pytest.mark.lab(cpus=2), pytest.mark.timeout(240)]


@pytest.fixture(params=["xfs", "ext4"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    with mounted_dax(request.param) as point:
        yield point


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [root])) as made:
        yield made


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def rdma() -> None:
    """Software RDMA on an interface of its own."""
    run("modprobe", "-a", "rdma_rxe", "ib_uverbs", "dummy")
    run("ip", "link", "add", "rdma-lab", "type", "dummy")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "rdma-lab")
    run("ip", "link", "set", "rdma-lab", "up")
    run("rdma", "link", "add", "rxe0", "type", "rxe", "netdev", "rdma-lab")
    for device in Path("/sys/class/infiniband_verbs").glob("uverbs*"):
        # There is no udev here to make it.
        major, minor = map(int, (device / "dev").read_text().split(":"))
        node = Path("/dev/infiniband", device.name)
        node.parent.mkdir(exist_ok=True)
        if not node.exists():
            os.mknod(node, 0o600 | 0o020000, os.makedev(major, minor))


@contextmanager
def holding(running: Running, file: Path, *command: str | Path) -> Iterator[subprocess.Popen[str]]:
    hold = ["hold", "--socket", running.socket, "--grace", "250s", file, *command]
    process = subprocess.Popen(
        [sys.executable, "-m", "sealsvc.cli.sealctl", *hold],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def the_seal(client: Client) -> SealInfo:
    seals = client.call(List).result.seals
    assert len(seals) == 1
    return seals[0]


def becomes(client: Client, state: str) -> None:
    until(lambda: the_seal(client).state == state)


@pytest.mark.usefixtures("rdma")
def test_an_rdma_region_is_deregistered_before_the_file_is_truncated(
    running: Running, root: Path, tmp_path: Path
) -> None:
    run("make", "-C", EXAMPLES / "rdma", f"OUT={tmp_path}")
    file, where = root / "region", tmp_path / "target.sock"
    file.write_bytes(bytes(MiB))
    options = ("--require", "map_sync,populate", "--prepare", "convert", "--")
    with (
        Client(str(running.socket), timeout=PATIENCE) as client,
        holding(running, file, *options, tmp_path / "target", where) as target,
    ):
        said = [_line(target) for _ in range(3)]
        assert said[0].startswith("pinning is refused"), said
        assert said[1:] == ["registered on demand", "ready"]
        seal = the_seal(client)
        report = client.validate(seal.id)
        assert (report.state, report.pfn_checked) == ("active", MiB // 4096)
        assert run(tmp_path / "initiator", where, "12288", "by RDMA") == "written\n"
        assert _line(target) == "an initiator has written"
        # A queue pair for each: one that talks nonsense, or leaves, ends itself alone.
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as nonsense:
            nonsense.connect(str(where))
            nonsense.send(b"hello")
            assert _line(target) == "an initiator did not say where it is"
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as silent:
            silent.connect(str(where))
            assert run(tmp_path / "initiator", where, "8192", "again") == "written\n"
            assert _line(target) == "an initiator has written"
            assert target.poll() is None
        assert _line(target) == "an initiator did not say where it is"

        os.kill(seal.holder.pid, signal.SIGSTOP)  # so that the wait is seen
        intruder = subprocess.Popen([sys.executable, "-c", TRUNCATE, file, str(MiB // 2)])
        try:
            becomes(client, "recalled")
            time.sleep(0.5)
            assert intruder.poll() is None
            os.kill(seal.holder.pid, signal.SIGCONT)
            assert _line(target) == "recalled"
            assert _line(target) == "deregistered, unmapped and closed"
            assert target.wait(PATIENCE) == 0
            assert intruder.wait(PATIENCE) == 0
        finally:
            intruder.kill()
            intruder.wait()
        assert client.call(List).result.seals == []
    assert file.stat().st_size == MiB // 2
    with file.open("rb") as opened:
        assert os.pread(opened.fileno(), 7, 12288) == b"by RDMA"
        assert os.pread(opened.fileno(), 5, 8192) == b"again"


def test_a_guest_on_persistent_memory_ends_when_it_is_recalled(
    running: Running, root: Path
) -> None:
    guest_gives_back(running, root)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")

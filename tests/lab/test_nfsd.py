"""The kernel's NFS server, and an NFS 4.2 client: its operations on a sealed file.

The client and the server are one machine, by the loopback address. Threads of nfsd are kernel
threads: they are in no system call, and there are four.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.seals import Recall, Return, SealInfo
from tests.bench.lab import nfs
from tests.lab.dax_files import make
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE

MiB = 1 << 20
THREADS = 4  # of nfsd (tests/bench/lab/nfs.py)

PROGRAM = """
import mmap, os, sys
from sealsvc.doctor import syscalls as sc
path, other = sys.argv[2:]
try:
    exec(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""
CHANGES = {
    "punch": "sc.fallocate(os.open(path, os.O_RDWR), 3, 65536, 65536)",
    "clone-of": "sc.clone(os.open(other, os.O_RDWR), os.open(path, os.O_RDONLY))",
    "clone-over": "sc.clone(os.open(path, os.O_RDWR), os.open(other, os.O_RDONLY))",
    "copy-of": "os.copy_file_range(os.open(path, os.O_RDONLY), os.open(other, os.O_RDWR), 65536,"
    " 0, 0)",
    "copy-over": "os.copy_file_range(os.open(other, os.O_RDONLY), os.open(path, os.O_RDWR), 65536,"
    " 0, 0)",
}
# By SETATTR: nfsd calls notify_change() itself, and fanotify has no event for that.
TRUNCATIONS = {
    "truncate": "os.truncate(path, 4096)",
    "open-trunc": "os.open(path, os.O_RDWR | os.O_TRUNC)",
}
HARMLESS = {
    "read": "os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 65536)], 0)",
    "write": "os.pwrite(os.open(path, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 65536), 65536)",
    "write-and-commit": "fd = os.open(path, os.O_RDWR); os.pwrite(fd, b'x' * 512, 100);"
    " os.fsync(fd)",
}

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@dataclass
class Export:
    """`root` is the server's directory, `client` where the client has it mounted."""

    root: Path
    client: Path
    running: Running
    enforcers: list[str]

    @property
    def conflict(self) -> str:
        return "wait" if "fanotify" in self.enforcers else "refuse"


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    client = tmp_path_factory.mktemp("nfs") / "client"
    with (
        mounted_dax("xfs", reflink=True, options="dax=never") as root,
        nfs.exported(root, client, layouts=False),
    ):
        yield root, client


@pytest.fixture(
    scope="module",
    params=["bpf", "fanotify", pytest.param("fanotify,bpf", marks=pytest.mark.long)],
)
def export(
    request: pytest.FixtureRequest,
    mounted: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Export]:
    enforcers = request.param.split(",")
    use = ", ".join(f'"{name}"' for name in enforcers)
    more = f"{RISKS}[enforcers]\nuse = [{use}]\n"
    with served(Running(tmp_path_factory.mktemp("service"), [mounted[0]], more)) as running:
        yield Export(*mounted, running, enforcers)


@contextmanager
def acting(export: Export, name: str, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """An operation of the NFS client's on the file of this name, and another beside it."""
    paths = [export.client / name, export.client / f"{name}-other"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, code, *paths])
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


@contextmanager
def sealed(export: Export, name: str) -> Iterator[tuple[Client, SealInfo]]:
    """A shared seal on a file of this name; the map is as it was when the context ends."""
    path = make(export.root / name, MiB)
    make(export.root / f"{name}-other", MiB)
    with Client(str(export.running.socket), timeout=PATIENCE) as client:
        reply = client.grant(path=str(path), kind="shared", conflict=export.conflict, grace=200)
        os.close(reply.fds[0])
        assert reply.seal.enforcers == export.enforcers
        before = placed(path)
        yield client, reply.seal
        assert placed(path) == before
        client.call(Return, seal=reply.seal.id)


def placed(path: Path) -> list[list[int]]:
    with path.open("rb") as file:
        rows: list[list[int]] = native.read_extents(file.fileno(), None)[:, :3].tolist()
        return rows


def recalled(client: Client, seal: SealInfo, within: float) -> bool:
    return any(isinstance(p, Recall) and p.seal == seal.id for p in client.pushes(within))


@pytest.mark.parametrize("name", CHANGES)
def test_a_client_changes_no_sealed_map(export: Export, name: str) -> None:
    """It is refused, or waits, and goes on when the seal is returned."""
    name_here = f"{name}-{len(export.enforcers)}-{export.conflict}"
    with ExitStack() as stack:
        with sealed(export, name_here) as (client, seal):
            actor = stack.enter_context(acting(export, name_here, CHANGES[name]))
            if export.conflict == "refuse":
                assert actor.wait(PATIENCE) != 0
            else:
                assert recalled(client, seal, PATIENCE)
                time.sleep(0.5)
                assert actor.poll() is None
        if export.conflict == "wait":
            assert actor.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_a_truncation_is_refused_or_a_risk_by_name(export: Export, name: str) -> None:
    name_here = f"{name}-{len(export.enforcers)}-{export.conflict}"
    with sealed(export, name_here) as (_, seal):
        if "bpf" not in export.enforcers:
            assert "nfs-truncate" in seal.accepted_risks
            return
        assert "nfs-truncate" not in seal.accepted_risks
        with acting(export, name_here, TRUNCATIONS[name]) as actor:
            assert actor.wait(PATIENCE) != 0


def test_an_allocation_moves_nothing(export: Export) -> None:
    """It fills holes, of which a sealed range has none. fanotify cannot tell it from a punch."""
    name = f"allocate-{len(export.enforcers)}-{export.conflict}"
    code = "sc.fallocate(os.open(path, os.O_RDWR), 0, 0, 1 << 20)"
    with ExitStack() as stack:
        with sealed(export, name) as (client, seal):
            actor = stack.enter_context(acting(export, name, code))
            if "fanotify" in export.enforcers:
                assert recalled(client, seal, PATIENCE)
            else:
                assert actor.wait(PATIENCE) == 0
        assert actor.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", HARMLESS)
def test_reads_and_writes_in_place_recall_nothing(export: Export, name: str) -> None:
    """Also of more at a time than nfsd has threads."""
    name_here = f"{name}-{len(export.enforcers)}-{export.conflict}"
    with sealed(export, name_here) as (client, seal), ExitStack() as stack:
        actors = [
            stack.enter_context(acting(export, name_here, HARMLESS[name]))
            for _ in range(THREADS + 1)
        ]
        assert [actor.wait(PATIENCE) for actor in actors] == [0] * len(actors)
        assert not recalled(client, seal, 0.5)


def test_those_who_wait_keep_no_thread_of_the_server(export: Export) -> None:
    """They are told to try again (NFS4ERR_DELAY), as with the server's own recalls."""
    if export.conflict == "refuse":
        pytest.skip("nobody waits")
    name = f"crowd-{len(export.enforcers)}"
    with ExitStack() as stack:
        with sealed(export, name) as (client, seal):
            actors = [
                stack.enter_context(acting(export, name, CHANGES["punch"]))
                for _ in range(THREADS + 1)
            ]
            assert recalled(client, seal, PATIENCE)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                fresh = f"{name}-{time.monotonic_ns()}"
                with acting(export, fresh, "os.close(os.open(path, os.O_CREAT, 0o600))") as other:
                    assert other.wait(PATIENCE) == 0
                assert (export.root / fresh).exists()
            assert [actor.poll() for actor in actors] == [None] * len(actors)
            assert not recalled(client, seal, 0.1)  # once is enough
        assert [actor.wait(PATIENCE) for actor in actors] == [0] * len(actors)

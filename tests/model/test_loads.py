"""Loads that know nothing of seals, on a file system with sealed files: no sealed block moves, and
every byte stays. Bounded in time: SEALSVC_LOAD=SECONDS for each."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Audit, AuditReport
from tests.model.fiemap import places
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, ROOT, serving
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SECONDS = float(os.environ.get("SEALSVC_LOAD", "4"))
STRESSORS = ("copy-file", "clone", "fallocate", "fiemap")
FILES = 8


@dataclass
class Sealed:
    path: Path
    id: str
    fd: int
    data: bytes
    map: dict[int, int]


@contextmanager
def sealed_files(socket: str, mount: Path) -> Iterator[list[Sealed]]:
    """Shared and exclusive seals that refuse, which nobody gives back meanwhile."""
    with Client(socket) as client:
        found = []
        for number in range(FILES):
            path, data = mount / f"sealed{number}", os.urandom(MiB)
            path.write_bytes(data)
            kind = ("shared", "exclusive")[number % 2]
            reply = client.grant(
                path=str(path), kind=kind, conflict="refuse", prepare=["unshare", "convert"]
            )
            where = places(reply.fds[0], 0, MiB)
            found.append(Sealed(path, reply.seal.id, reply.fds[0], data, where))
        yield found
        report = client.call(Audit).result
        assert isinstance(report, AuditReport)
        assert (report.checked, report.drifted) == (FILES, [])
        for seal in found:
            assert places(seal.fd, 0, MiB) == seal.map, seal.path
            assert os.pread(seal.fd, MiB, 0) == seal.data, seal.path
            os.close(seal.fd)
            client.call(Return, seal=seal.id)


@pytest.fixture(params=["xfs", "ext4"])
def mount(request: pytest.FixtureRequest) -> Iterator[Path]:
    with mounted(request.param, 1024 * MiB) as point:
        yield point


@pytest.mark.skipif(shutil.which("stress-ng") is None, reason="stress-ng is not installed")
def test_stress_ng_beside_sealed_files(mount: Path, tmp_path: Path) -> None:
    beside = mount / "beside"
    beside.mkdir()
    with serving(tmp_path, [mount], RISKS) as socket, sealed_files(socket, mount):
        command = ["stress-ng", "--temp-path", str(beside), "--timeout", f"{SECONDS:.0f}s"]
        sizes = ["--copy-file-bytes", "128M", "--fallocate-bytes", "16M", "--fiemap-bytes", "16M"]
        for stressor in STRESSORS:
            command += [f"--{stressor}", "1"]
        done = subprocess.run(
            [*command, *sizes, "--metrics-brief"],
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


LOAD = "from tests.model.test_loads import load; load(*__import__('sys').argv[1:])"


def test_a_crowd_of_file_operations_on_and_beside_sealed_files(mount: Path, tmp_path: Path) -> None:
    """As fsstress does: processes that create, write, truncate, link, rename, punch and delete; and
    that try the sealed files themselves."""
    with serving(tmp_path, [mount], RISKS) as socket, sealed_files(socket, mount):
        command = [sys.executable, "-c", LOAD, str(mount)]
        crowd = [
            subprocess.Popen(
                [*command, str(seed), str(SECONDS)], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for seed in range(3)
        ]
        told = [process.communicate(timeout=PATIENCE)[0] for process in crowd]
        assert [process.returncode for process in crowd] == [0, 0, 0]
    done, refused = (sum(int(line.split()[n]) for line in told) for n in (0, 1))
    assert done > 100, told
    assert refused > 10, told


def load(mount: str, seed: str, seconds: str) -> None:
    """Prints how many operations were done, and how many were refused because of seals."""
    from sealsvc.doctor import syscalls

    chance, until = random.Random(seed), time.monotonic() + float(seconds)
    names = [f"{mount}/n{seed}-{n}" for n in range(12)]
    done = refused = 0

    def fallocate(path: str, mode: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            syscalls.fallocate(fd, mode, chance.randrange(200) * 4096, 16 * 4096)
        finally:
            os.close(fd)

    def write(path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, chance.randbytes(chance.randrange(1, 65536)), chance.randrange(MiB))
        finally:
            os.close(fd)

    while time.monotonic() < until or done < 100 or refused < 10:
        path, other = chance.choice(names), chance.choice(names)
        victim = chance.choice([path, path, f"{mount}/sealed{chance.randrange(FILES)}"])
        acts = [
            lambda: write(path),  # noqa: B023 (called in this turn)
            lambda: os.truncate(victim, chance.randrange(MiB)),  # noqa: B023
            lambda: os.rename(path, other),  # noqa: B023
            lambda: os.link(path, other),  # noqa: B023
            lambda: os.unlink(path),  # noqa: B023
            lambda: fallocate(victim, syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE),  # noqa: B023
            lambda: fallocate(victim, syscalls.ZERO_RANGE),  # noqa: B023
            lambda: fallocate(victim, syscalls.COLLAPSE_RANGE),  # noqa: B023
            lambda: fallocate(path, 0),  # noqa: B023
        ]
        try:
            chance.choice(acts)()
            done += 1
        except OSError:
            refused += victim is not path
    print(done, refused)

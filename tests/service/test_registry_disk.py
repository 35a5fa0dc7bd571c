"""The registry's disk may be full, read-only, hanging, unreadable, damaged or gone: grants go on as
fast as before, nothing ends, and when the disk is well again the trail says what it lost."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.history import History, VerifyTrail
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Status
from tests.support.service import RISKS, MiB, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

RATE = 100.0  # grants in a second
SECONDS = 1.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 1 KiB blocks: SQLite's -shm has holes there. Read-only after an error."""
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(16 * MiB)
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", image], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


@pytest.fixture
def running(xfs: Path, disk: Path, tmp_path: Path) -> Iterator[Running]:
    registry = f'[registry]\ndirectory = "{disk}/registry"\n'
    with served(Running(tmp_path, [xfs], RISKS + registry)) as made:
        yield made


@pytest.fixture
def file(xfs: Path) -> Iterator[Path]:
    made = xfs / f"registry-faults-{os.getpid()}"
    made.write_bytes(os.urandom(MiB))
    os.sync()
    yield made
    made.unlink()


def grants(client: Client, file: Path) -> float:
    """Seconds that a grant and its return took, by the median, of RATE each second."""
    took = []
    due = time.monotonic()
    for _ in range(int(RATE * SECONDS)):
        due += 1 / RATE
        time.sleep(max(0.0, due - time.monotonic()))
        before = time.monotonic()
        granted = client.grant(path=str(file), kind="shared")
        os.close(granted.fds[0])
        client.call(Return, seal=granted.seal.id)
        took.append(time.monotonic() - before)
    return statistics.median(took)


def full(disk: Path) -> Callable[[], object]:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast.unlink


def read_only(disk: Path) -> None:
    mounts = Path("/proc/mounts").read_text().splitlines()
    (device,) = (line.split()[0] for line in mounts if f" {disk} " in line)
    Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("a test")


def hanging(disk: Path) -> Callable[[], object]:
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    return lambda: subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)


def failing(disk: Path) -> None:
    """EXT4_IOC_SHUTDOWN: each access is EIO from now on."""
    code = (
        "import fcntl, os, sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587D, b'\\2\\0\\0\\0')"
    )
    subprocess.run([sys.executable, "-c", code, disk], check=True)


def damaged(disk: Path) -> None:
    path = disk / "registry" / "registry.db"
    with path.open("r+b") as file:
        for at in range(8192, path.stat().st_size, 4096):
            file.seek(at)
            file.write(b"\xa5" * 200)


def removed(disk: Path) -> None:
    subprocess.run(["rm", "-r", disk / "registry"], check=True)


@pytest.mark.parametrize("fault", [full, read_only, hanging, failing, damaged, removed])
def test_grants_go_on_as_before(
    running: Running,
    disk: Path,
    file: Path,
    fault: Callable[[Path], Callable[[], object] | None],
) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        grants(client, file)
        usual = grants(client, file)
        mend = fault(disk)
        try:
            now = grants(client, file)
            assert now < 2 * usual + 0.002, f"{usual} s, then {now} s"
            assert client.call(Status).result.pid
        finally:
            if mend is not None:
                mend()
        if mend is not None:
            until(lambda: client.call(Status).result.registry.lag == 0, 30)
            until(lambda: client.call(Status).result.registry.troubles == [], 30)
            count = len(client.call(History).result.seals)
            assert count > 40, "a page of them"
            assert client.call(VerifyTrail).result.intact
    assert running.process is not None
    assert running.process.poll() is None


def test_the_next_service_takes_over_while_the_disk_hangs(
    running: Running, disk: Path, file: Path
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
        until(lambda: client.call(Status).result.registry.lag == 0, 30)
        assert client.call(VerifyTrail).result.intact

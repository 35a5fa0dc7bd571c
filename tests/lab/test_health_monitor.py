"""XFS's own monitor of its health (XFS_IOC_HEALTH_MONITOR, Linux 7.0): a disk loses sectors."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.integrity.kernel import xfs
from sealsvc.protocol.integrity import PiError, PiErrors
from sealsvc.protocol.seals import Extents, Return
from tests.lab.pi_devices import MiB, mounted, sh
from tests.support.service import RISKS, Running
from tests.support.waiting import until

pytestmark = [
    pytest.mark.lab(kernel="newest", pmem=0, memory=1024),
    pytest.mark.timeout(1200),
]
SLOW = 600.0
BAD = 65536  # of the file: where its medium is lost


@pytest.fixture
def disk() -> Iterator[Path]:
    """A linear mapping of a loop device, which a test gives a bad stretch."""
    image = Path("/tmp/health-image")
    with image.open("wb") as file:
        file.truncate(320 * MiB)
    sh("modprobe", "-a", "loop", "dm_mod")
    loop = Path(sh("losetup", "--show", "-f", image).strip())
    table(f"0 {320 * 2048} linear {loop} 0\n", "create")
    try:
        yield loop
    finally:
        sh("dmsetup", "remove", "--noudevsync", "--retry", "health")
        sh("losetup", "-d", loop)
        image.unlink()


def table(lines: str, how: str = "reload") -> None:
    options = ["--noudevsync"] if how == "create" else []
    subprocess.run(["dmsetup", how, *options, "health"], input=lines, text=True, check=True)
    if how == "create":
        sh("dmsetup", "mknodes")
    else:
        sh("dmsetup", "suspend", "--noudevsync", "health")
        sh("dmsetup", "resume", "--noudevsync", "health")


@pytest.fixture
def point(disk: Path, tmp_path: Path) -> Iterator[Path]:
    with mounted(Path("/dev/mapper/health").resolve(), tmp_path / "fs") as made:
        yield made


@pytest.fixture
def running(point: Path, tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path, [point], RISKS + '[enforcers]\nuse = ["fanotify"]\n')
    made.start()
    until(made.socket.exists, SLOW, "the service's socket")
    made.ready()
    yield made
    made.end()


def is_taken(point: Path) -> bool:
    """By the process of the service: a file system has one monitor."""
    try:
        found = xfs.open_monitor(os.stat(point).st_dev, [])
    except xfs.Taken:
        return True
    assert found >= 0, "the kernel has no health monitor"
    os.close(found)
    return False


def test_a_read_that_fails_names_file_and_range(running: Running, point: Path, disk: Path) -> None:
    path = point / "file"
    path.write_bytes(os.urandom(MiB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    with Client(str(running.socket), timeout=SLOW) as client:
        reply = client.grant(path=str(path))
        [fd] = reply.fds
        [extent] = client.call(Extents, seal=reply.seal.id).result.extents
        until(lambda: is_taken(point), SLOW, "the service has the file system's monitor")
        heard = client.call(PiErrors, after=2**53).result.next
        start = (extent.physical + BAD) // 512
        table(
            f"0 {start} linear {disk} 0\n{start} 8 error\n"
            f"{start + 8} {320 * 2048 - start - 8} linear {disk} {start + 8}\n"
        )
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 4096, BAD)
        error = told(client, heard)
        assert (error.kind, error.at, error.errno) == ("filesystem", "kernel", errno.EIO)
        assert (error.path, error.seal, error.file) == (str(path), reply.seal.id, reply.seal.file)
        assert error.offset <= BAD < error.offset + error.length
        assert error.physical == extent.physical + error.offset
        assert error.detail in ("buffered read", "direct read")
        os.close(fd)
        client.call(Return, seal=reply.seal.id)
    assert is_taken(point)
    running.stop()
    assert not is_taken(point)


def told(client: Client, after: int) -> PiError:
    page = client.call(PiErrors, after=after, wait=250).result
    assert page.errors
    return page.errors[0]

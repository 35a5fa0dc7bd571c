"""CoW preallocations from before the grant: dropped, so that the holder's stores stay in place."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sealsvc.client import Client
from sealsvc.client.datagrams import Reply
from sealsvc.core.errors import Refusal
from sealsvc.core.extents import EXTENT_SHARED
from sealsvc.doctor import syscalls
from sealsvc.linux import native
from sealsvc.protocol.seals import Return
from tests.support.refusals import refusal
from tests.support.scratch import MiB
from tests.support.service import RISKS, serving
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

AT, NEAR = 512 * 1024, 512 * 1024 + 32768  # within one cowextsize of 128 KiB


@pytest.fixture
def client(xfs: Path, tmp_path: Path) -> Iterator[Client]:
    with serving(tmp_path, [xfs], RISKS) as socket, Client(socket) as made:
        yield made


@pytest.fixture
def file(xfs: Path) -> Iterator[Path]:
    made = xfs / "preallocated"
    write(made, 0, os.urandom(MiB), os.O_CREAT)
    yield made
    made.unlink()


def write(path: Path, offset: int, data: bytes, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDWR | flags)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def by_a_clone(path: Path) -> None:
    """Share a block, write to it, and let the clone go."""
    beside = path.with_suffix(".clone")
    write(beside, 0, b"", os.O_CREAT)
    with path.open("rb") as source, beside.open("r+b") as clone:
        syscalls.clone_range(clone.fileno(), source.fileno(), AT, 4096)
    write(path, AT, bytes(4096))
    beside.unlink()


def by_an_atomic_write(path: Path) -> None:
    """Of a file that never shared a block (Linux 6.16)."""
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 16384) as buffer:
            syscalls.write_atomic(fd, [buffer], AT)
    except OSError as error:
        pytest.skip(f"no RWF_ATOMIC here: {error}")
    finally:
        os.close(fd)


def excess(path: Path) -> int:
    """Blocks of 512 bytes that the file has beyond its extents."""
    with path.open("rb") as opened:
        rows = native.read_extents(opened.fileno(), None)
    return path.stat().st_blocks - int(rows[:, 2].sum()) // 512


def stays(fd: int, at: int) -> bool:
    """Whether a store at `at` leaves the map as it is; `fd` is closed."""
    before = native.read_extents(fd, None)
    try:
        with mmap.mmap(fd, MiB) as mapping:
            mapping[at : at + 4096] = bytes(4096)
            mapping.flush()
            os.fsync(fd)
        return bool((native.read_extents(fd, None) == before).all())
    finally:
        os.close(fd)


@pytest.mark.parametrize("make", [by_a_clone, by_an_atomic_write])
@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_the_holders_first_store_stays(
    client: Client, file: Path, make: Callable[[Path], None], kind: str
) -> None:
    make(file)
    assert excess(file) > 0, "there is nothing to be dropped"
    reply = client.grant(path=str(file), kind=kind)
    assert stays(reply.fds[0], NEAR)
    client.call(Return, seal=reply.seal.id)


@contextmanager
def read_asynchronously(path: Path) -> Iterator[None]:
    """There is always direct I/O in flight: the kernel drops no preallocation meanwhile."""
    if shutil.which("fio") is None:
        pytest.skip("needs fio")
    command = ["fio", "--name=read", f"--filename={path}", "--rw=randread", "--direct=1"]
    command += ["--ioengine=libaio", "--iodepth=64", "--time_based", "--runtime=300"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until(lambda: is_reading(process))
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def is_reading(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    children = psutil.Process(process.pid).children()
    return any(child.io_counters().read_bytes > 4 * MiB for child in children)


def test_what_direct_reads_keep_is_not_taken_for_metadata(client: Client, file: Path) -> None:
    by_a_clone(file)
    with read_asynchronously(file):
        reply = granted_or_put_off(client, file)
        if reply is not None:
            assert stays(reply.fds[0], NEAR)
            return
    reply = client.grant(path=str(file), kind="shared")
    assert stays(reply.fds[0], NEAR)
    client.call(Return, seal=reply.seal.id)


def granted_or_put_off(client: Client, file: Path) -> Reply | None:
    try:
        return client.grant(path=str(file), kind="shared")
    except Refusal as refused:
        if refused.code != "try-later":
            raise
        return None


def test_blocks_of_attributes_are_no_preallocations(client: Client, file: Path) -> None:
    """Of a file that is read meanwhile, too."""
    os.setxattr(file, "user.long", bytes(3000))
    assert excess(file) > 0
    with read_asynchronously(file):
        reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)


def test_blocks_of_the_extent_tree_are_no_preallocations(client: Client, file: Path) -> None:
    for offset in range(2 * MiB, 4 * MiB, 8192):
        write(file, offset, bytes(4096))
    assert excess(file) > 0
    for _ in range(2):
        reply = client.grant(path=str(file), length=MiB, kind="shared")
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)


def test_sharing_outside_the_range_is_refused(client: Client, file: Path) -> None:
    beside = file.with_suffix(".clone")
    write(beside, 0, b"", os.O_CREAT)
    with file.open("rb") as source, beside.open("r+b") as clone:
        syscalls.clone_range(clone.fileno(), source.fileno(), AT, 4096)
    try:
        refused = refusal(lambda: client.grant(path=str(file), length=65536))
        assert refused.code == "reflink-neighbours"
        assert refused.details["reason"] == "shared"
        reply = client.grant(path=str(file), length=65536, prepare=["unshare"])
        rows = native.read_extents(reply.fds[0], None)
        assert not (rows[:, 3] & EXTENT_SHARED).any()
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
    finally:
        beside.unlink()

"""What intruders meet: every operation as a real system call of a real second process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.linux.native import read_extents
from sealsvc.protocol.seals import Recall, Return, Show
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

INTRUDER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(mode, offset, length):
    fd = os.open(path, os.O_RDWR)
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
path = sys.argv[1]
try:
    exec(sys.argv[2])
except OSError as error:
    sys.exit(error.errno)
"""

CONFLICTS = {
    "truncate": "os.truncate(path, 4096)",
    "ftruncate": "os.ftruncate(os.open(path, os.O_RDWR), 65536)",
    "open-trunc": "os.open(path, os.O_RDWR | os.O_TRUNC)",
    "punch": "fallocate(3, 65536, 65536)",
    "zero": "fallocate(16, 65536, 65536)",
    "collapse-below": "fallocate(8, 0, 65536)",
    "insert-below": "fallocate(32, 0, 65536)",
}
HARMLESS = {
    "read": "os.pread(os.open(path, os.O_RDONLY), 65536, 65536)",
    "write-inside": "os.pwrite(os.open(path, os.O_RDWR), b'x' * 4096, 65536)",
    "append": "os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'x' * 65536)",
    "allocate": "fallocate(0, 65536, 65536)",
    "truncate-up": "os.truncate(path, 2 << 20)",
    "punch-beyond": "fallocate(3, 786432, 65536)",
    "truncate-above": "os.truncate(path, 524288)",
}
RANGE = {"offset": 65536, "length": 196608}


def extents_of(path: Path) -> list[list[int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        rows = read_extents(fd, None, sync=True)
    finally:
        os.close(fd)
    return rows[:, :3].tolist()


@contextmanager
def intruding(path: Path, code: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", INTRUDER, str(path), code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def shared(client: Client, file: Path, **fields: object) -> str:
    reply = client.grant(path=str(file), kind="shared", **RANGE, **fields)
    for fd in reply.fds:
        os.close(fd)
    return reply.seal.id


def next_recall(client: Client) -> Recall:
    found = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
    assert isinstance(found, Recall)
    return found


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_waits_until_the_seal_is_returned(client: Client, file: Path, name: str) -> None:
    before = extents_of(file)
    seal = shared(client, file, grace=200)
    with intruding(file, CONFLICTS[name]) as intruder:
        recall = next_recall(client)
        assert recall.seal == seal
        assert recall.operation is not None
        assert recall.operation.pid == intruder.pid
        time.sleep(0.05)
        assert intruder.poll() is None, "the intruder did not wait"
        assert extents_of(file) == before
        client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_is_refused(client: Client, file: Path, name: str) -> None:
    before = extents_of(file)
    seal = shared(client, file, conflict="refuse")
    with intruding(file, CONFLICTS[name]) as intruder:
        assert intruder.wait(PATIENCE) == errno.ETXTBSY
    assert extents_of(file) == before
    client.call(Return, seal=seal)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_not_conflict_goes_on_at_once(client: Client, file: Path, name: str) -> None:
    seal = shared(client, file, conflict="refuse")
    with intruding(file, HARMLESS[name]) as intruder:
        assert intruder.wait(PATIENCE) == 0
    assert client.call(Show, seal=seal).seal.state == "granted"
    client.call(Return, seal=seal)


def test_an_exclusive_seal_shuts_out_every_open(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), conflict="refuse")
    with intruding(file, "os.open(path, os.O_RDONLY)") as intruder:
        assert intruder.wait(PATIENCE) == errno.ETXTBSY
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)
    with intruding(file, "os.open(path, os.O_RDONLY)") as intruder:
        assert intruder.wait(PATIENCE) == 0


def test_a_descriptor_opened_before_the_grant_is_seen(client: Client, file: Path) -> None:
    code = "fd = os.open(path, os.O_RDWR); print(flush=True); sys.stdin.read(1);"
    code += " os.close(fd) if libc.fallocate(fd, 3, ctypes.c_long(65536), ctypes.c_long(4096)) == 0"
    code += " else sys.exit(ctypes.get_errno())"
    process = subprocess.Popen(
        [sys.executable, "-c", INTRUDER, str(file), code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    seal = shared(client, file, conflict="refuse")
    process.communicate(b"x", timeout=PATIENCE)
    assert process.returncode == errno.ETXTBSY
    client.call(Return, seal=seal)


def test_reflink_of_a_sealed_file_conflicts(client: Client, file: Path, root: Path) -> None:
    if "xfs" not in str(root):
        pytest.skip("ext4 has no reflink")
    seal = shared(client, file, conflict="refuse")
    code = "import fcntl; a = os.open(path, os.O_RDONLY);"
    code += " b = os.open(path + '.copy', os.O_RDWR | os.O_CREAT); fcntl.ioctl(b, 0x40049409, a)"
    with intruding(file, code) as intruder:
        assert intruder.wait(PATIENCE) == errno.ETXTBSY
    client.call(Return, seal=seal)
    Path(f"{file}.copy").unlink()


def test_without_a_fence_the_operation_fails_with_ebusy(client: Client, file: Path) -> None:
    before = extents_of(file)
    seal = shared(client, file, grace=0.2)
    with intruding(file, CONFLICTS["punch"]) as intruder:
        assert intruder.wait(PATIENCE) == errno.EBUSY
    assert extents_of(file) == before
    assert client.call(Show, seal=seal).seal.state == "recalled"
    client.call(Return, seal=seal)


def test_a_killed_waiter_leaves_nothing(client: Client, file: Path) -> None:
    seal = shared(client, file, grace=200)
    with intruding(file, CONFLICTS["truncate"]) as intruder:
        next_recall(client)
        intruder.send_signal(signal.SIGKILL)
        assert intruder.wait(PATIENCE) == -signal.SIGKILL
    client.call(Return, seal=seal)
    assert len(extents_of(file)) > 0
    assert file.stat().st_size == 1 << 20


def test_an_operation_that_meets_two_seals_waits_for_both(
    socket: str, client: Client, file: Path
) -> None:
    with Client(socket) as other:
        first = shared(client, file, grace=200)
        second = shared(other, file, grace=200)
        with intruding(file, CONFLICTS["punch"]) as intruder:
            assert next_recall(client).seal == first
            assert next_recall(other).seal == second
            client.call(Return, seal=first)
            time.sleep(0.1)
            assert intruder.poll() is None
            other.call(Return, seal=second)
            assert intruder.wait(PATIENCE) == 0


def test_the_service_cannot_deadlock_on_its_own_marks(client: Client, file: Path) -> None:
    """A second grant opens, marks and reads the very file that the first one watches."""
    for _ in range(20):
        seal = shared(client, file)
        other = shared(client, file)
        client.call(Return, seal=seal)
        client.call(Return, seal=other)

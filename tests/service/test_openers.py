"""Who had the file open before: found, proven to be seen, or named in the refusal."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Return
from tests.support.refusals import refusal
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, serving
from tests.support.waiting import until

pytestmark = pytest.mark.kernel


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A file system that no service has armed yet."""
    with mounted("ext4", 128 * MiB) as point:
        yield point


def test_a_writer_from_before_the_service_is_named(fresh: Path, tmp_path: Path) -> None:
    file = fresh / "file"
    file.write_bytes(os.urandom(MiB))
    with file.open("r+b"), serving(tmp_path, [fresh], RISKS) as socket, Client(socket) as client:
        for kind in ("shared", "exclusive"):
            with pytest.raises(Refusal) as caught:
                client.grant(path=str(file), kind=kind)
            assert caught.value.code == "file-in-use"
            assert caught.value.details["pids"] == [os.getpid()]


def test_a_writer_from_after_the_service_started_is_seen(fresh: Path, tmp_path: Path) -> None:
    file = fresh / "file"
    file.write_bytes(os.urandom(MiB))
    with serving(tmp_path, [fresh], RISKS) as socket, Client(socket) as client, file.open("r+b"):
        reply = client.grant(path=str(file), kind="shared")
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)


def test_a_file_that_backs_a_loop_device_is_refused(client: Client, root: Path) -> None:
    file = root / "backing"
    file.write_bytes(os.urandom(MiB))
    done = subprocess.run(
        ["losetup", "--find", "--show", file], capture_output=True, text=True, check=True
    )
    loop = done.stdout.strip()
    try:
        with pytest.raises(Refusal) as caught:
            client.grant(path=str(file), kind="shared")
        assert caught.value.code == "backs-loop-device"
        assert loop in caught.value.message
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
        file.unlink()


LEASE = """
import fcntl, os, signal, sys
fd = os.open(sys.argv[1], int(sys.argv[2]))
def give_up(*_):
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(fd)
signal.signal(signal.SIGIO, give_up)
fcntl.fcntl(fd, fcntl.F_SETLEASE, int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
@pytest.mark.parametrize(
    ("flags", "lease"), [(os.O_RDWR, fcntl.F_WRLCK), (os.O_RDONLY, fcntl.F_RDLCK)]
)
def test_a_lease_of_somebody_else_is_broken(
    client: Client, file: Path, kind: str, flags: int, lease: int
) -> None:
    """By a request that is told to try again, as an oplock of Samba or a delegation of nfsd is."""
    command = [sys.executable, "-c", LEASE, file, str(flags), str(lease)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        refused = refusal(lambda: client.grant(path=str(file), kind=kind))
        assert refused.code == "try-later"
        assert refused.row.retryable
        assert "lease" in refused.message
        until(lambda: granted(client, file, kind))
        other.communicate("\n")


def granted(client: Client, file: Path, kind: str) -> bool:
    try:
        reply = client.grant(path=str(file), kind=kind)
    except Refusal:
        return False
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)
    return True

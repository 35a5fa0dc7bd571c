"""Who may open a PI channel, and where there is none: a service on a disk that keeps no PI."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.integrity.device_client import PiFile
from sealsvc.protocol.pi_device import PiPath, PiPathInfo
from sealsvc.protocol.seals import Return, SealInfo
from tests.support.refusals import refusal
from tests.support.service import RISKS, serving

pytestmark = pytest.mark.kernel
KiB = 1 << 10

OPEN = """
import sys
from sealsvc.client import Client
from sealsvc.integrity.device_client import PiFile
PiFile.open(Client(sys.argv[1]), sys.argv[2])
"""


@pytest.fixture(scope="module")
def socket(xfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("channels"), [xfs], RISKS) as path:
        yield path


@pytest.fixture
def client(socket: str) -> Iterator[Client]:
    with Client(socket) as made:
        yield made


@pytest.fixture
def file(xfs: Path) -> Iterator[Path]:
    path = xfs / "channels"
    path.write_bytes(bytes(64 * KiB))
    yield path
    path.unlink()


@contextmanager
def sealed(client: Client, file: Path, kind: str) -> Iterator[SealInfo]:
    reply = client.grant(path=str(file), kind=kind)
    try:
        yield reply.seal
    finally:
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)


def described(client: Client, fd: int) -> PiPathInfo:
    result = client.call(PiPath, [fd]).result
    assert isinstance(result, PiPathInfo)
    return result


def test_what_there_could_be_is_told_with_the_reason(client: Client, file: Path) -> None:
    with file.open("rb") as opened:
        found = described(client, opened.fileno())
        assert (found.available, "is a loop device" in found.reason) == (False, True)
    with sealed(client, file, "exclusive") as seal:
        assert client.call(PiPath, seal=seal.id).result == found
    with open("/proc/self/status", "rb") as opened:
        assert "is no block device" in described(client, opened.fileno()).reason
    assert refusal(lambda: client.call(PiPath)).code == "bad-request"


def test_a_loop_device_is_not_written_below_its_file(client: Client, file: Path) -> None:
    with sealed(client, file, "exclusive") as seal:
        refused = refusal(lambda: PiFile.open(client, seal.id))
        assert refused.code == "device-path-unavailable"
        assert "its blocks are those of another file" in refused.message


def test_only_the_holder_of_an_exclusive_seal_may(client: Client, file: Path) -> None:
    with sealed(client, file, "exclusive") as seal:
        command = [sys.executable, "-c", OPEN, client.path, seal.id]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} holds seal {seal.id}, not the caller" in done.stderr
    assert refusal(lambda: PiFile.open(client, seal.id)).code == "no-such-seal"
    with sealed(client, file, "shared") as seal:
        refused = refusal(lambda: PiFile.open(client, seal.id))
        assert (refused.code, "is shared" in refused.message) == ("device-path-unavailable", True)

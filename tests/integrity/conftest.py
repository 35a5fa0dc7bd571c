"""A daemon of its own on an XFS of its own, whose image a test can write to behind its back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.integrity import PiAttach, PiAttachment, PiReport, PiVerify
from sealsvc.protocol.seals import Extents, Return, SealInfo
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE

MiB = 1 << 20
BLOCK = 4096


class Ground:
    """A file system, its image, and the daemon that serves it."""

    def __init__(self, point: Path, running: Running) -> None:
        self.point, self.image, self.running = point, point.parent / "image", running
        self.socket = str(running.socket)

    def client(self) -> Client:
        return Client(self.socket, timeout=PATIENCE)

    def file(self, name: str, size: int = MiB) -> Path:
        path = self.point / name
        with path.open("wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
        return path

    def corrupt(self, physical: int, data: bytes) -> None:
        """On the disk, where nobody who has the file open can see it happen."""
        with self.image.open("r+b") as image:
            image.seek(physical)
            image.write(data)
            image.flush()
            os.fsync(image.fileno())

    def place(self, client: Client, seal: str, offset: int) -> int:
        """Where a byte of a sealed file lies on the disk."""
        for extent in client.call(Extents, seal=seal).result.extents:
            if extent.logical <= offset < extent.logical + extent.length:
                return extent.physical + offset - extent.logical
        raise AssertionError(f"no extent has {offset}")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with mounted("xfs", mkfs_args=["-m", "reflink=1"]) as point:
        directory = tmp_path_factory.mktemp("daemon")
        (directory / "keys").mkdir()
        (directory / "keys/mine").write_bytes(b"a secret of the test")
        subprocess.run(
            ["openssl", "genpkey", "-algorithm", "ed25519", "-out", directory / "keys/signer"],
            check=True,
        )
        more = RISKS + "[fence]\nsignal_grace = 0.5\n"
        more += f'[integrity]\nkeys = "{directory}/keys"\nprofiles = "{directory}/profiles"\n'
        with served(Running(directory, [point], more)) as running:
            yield Ground(point, running)


@pytest.fixture
def client(ground: Ground) -> Iterator[Client]:
    with ground.client() as made:
        yield made


def sealed(client: Client, path: Path, **fields: object) -> tuple[SealInfo, int]:
    reply = client.grant(path=str(path), **fields)
    return reply.seal, reply.fds[0]


def attach(
    client: Client, seal: SealInfo, profile: str = "crc32c-4k", **more: object
) -> PiAttachment:
    made = client.call(PiAttach, seal=seal.id, profile=profile, **more).result
    assert isinstance(made, PiAttachment)
    return made


def give_back(client: Client, seal: SealInfo, fd: int = -1) -> None:
    with suppress(OSError):
        os.close(fd)
    client.call(Return, seal=seal.id)


def verify(client: Client, attachment: PiAttachment, **more: object) -> PiReport:
    found = client.call(PiVerify, attachment=attachment.id, **more).result
    assert isinstance(found, PiReport)
    return found

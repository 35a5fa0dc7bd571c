"""A sealed file that the kernel serves to clients of a network, and what a client does to it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.seals import Recall, Return, SealInfo
from tests.lab.dax_files import make
from tests.support.service import RISKS, MiB, Running, served
from tests.support.waiting import PATIENCE

_PROGRAM = """
import mmap, os, sys
from sealsvc.doctor import syscalls as sc
path, other = sys.argv[2:]
try:
    exec(sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""


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

    def name(self, name: str) -> str:
        """Of a file that tests with other enforcers do not have."""
        return f"{name}-{'-'.join(self.enforcers)}"


@contextmanager
def sealing(
    root: Path, client: Path, enforcers: list[str], directory: Path, risks: str = RISKS
) -> Iterator[Export]:
    """A service with these enforcers, for the server's directory."""
    use = ", ".join(f'"{name}"' for name in enforcers)
    with served(Running(directory, [root], f"{risks}[enforcers]\nuse = [{use}]\n")) as running:
        yield Export(root, client, running, enforcers)


@contextmanager
def acting(export: Export, name: str, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """An operation of the client's on the file of this name, and another beside it. The process
    ends with its errno."""
    paths = [export.client / name, export.client / f"{name}-other"]
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM, code, *paths])
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


def change_nothing(export: Export, name: str, code: str) -> None:
    """What a client does to a sealed file of this name, and would change its map by, is refused, or
    waits and goes on when the seal is returned."""
    name = export.name(name)
    with ExitStack() as stack:
        with sealed(export, name) as (client, seal):
            actor = stack.enter_context(acting(export, name, code))
            if export.conflict == "refuse":
                assert actor.wait(PATIENCE) != 0
            else:
                assert recalled(client, seal, PATIENCE)
                time.sleep(0.5)
                assert actor.poll() is None
        if export.conflict == "wait":
            assert actor.wait(PATIENCE) == 0

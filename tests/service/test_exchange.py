"""XFS_EXCHANGE_RANGE_TO_EOF exchanges the sizes of two files, wherever the range begins."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from tests.support.service import RISKS, MiB, serving
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

EXCHANGE = """
import os, sys
from sealsvc.doctor import syscalls
sealed, other = (os.open(path, os.O_RDWR) for path in sys.argv[1:])
try:
    syscalls.exchange_to_end(other, sealed, os.fstat(sealed).st_size)
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.fixture
def client(xfs_noreflink: Path, tmp_path: Path) -> Iterator[Client]:
    with (
        serving(tmp_path, [xfs_noreflink], RISKS) as socket,
        Client(socket, timeout=PATIENCE) as made,
    ):
        yield made


def test_an_exchange_behind_the_range_does_not_cut_the_file(
    client: Client, xfs_noreflink: Path
) -> None:
    """Without reflink: with it, every exchange of a sealed file is a conflict anyway."""
    sealed, other = xfs_noreflink / "sealed", xfs_noreflink / "other"
    sealed.write_bytes(os.urandom(MiB))
    other.write_bytes(os.urandom(MiB + 4096))
    os.truncate(other, MiB + 1024)
    os.sync()
    reply = client.grant(path=str(sealed), kind="shared", conflict="refuse")
    os.close(reply.fds[0])
    command = [sys.executable, "-c", EXCHANGE, str(sealed), str(other)]
    assert subprocess.run(command, timeout=PATIENCE, check=False).returncode == errno.ETXTBSY
    assert sealed.stat().st_size == MiB
    client.call(Return, seal=reply.seal.id)
    sealed.unlink()
    other.unlink()

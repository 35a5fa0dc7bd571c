"""Files to copy between, on real file systems."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sealsvc.copies import Ends, Options, Result, make_plan, open_ends, run
from tests.copies.stacks import lower_filesystem, upper
from tests.support.scratch import PREFIX
from tests.support.service import RISKS, serving

MiB = 1 << 20


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that differ from block to block, and from seed to seed."""
    block = bytearray(os.urandom(4096))
    out = bytearray()
    for number in range(-(-size // 4096)):
        block[0:8] = (number * 2654435761 + seed & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
        out += block
    return bytes(out[:size])


@contextmanager
def opened(source: Path, destination: Path) -> Iterator[Ends]:
    with ExitStack() as stack:
        fds = []
        for path, flags in ((source, os.O_RDONLY), (destination, os.O_RDWR | os.O_CREAT)):
            fds.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
            stack.callback(os.close, fds[-1])
        yield open_ends(*fds)


def copied(source: Path, destination: Path, options: Options | None = None) -> Result:
    with opened(source, destination) as ends:
        return run(make_plan(ends, options or Options()))


@pytest.fixture(params=["xfs", "xfs_noreflink", "ext4"])
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A new directory on each file system."""
    root: Path = request.getfixturevalue(request.param)
    directory = root / f"copies-{request.node.name[:40].replace('/', '_')}"
    directory.mkdir()
    yield directory
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@pytest.fixture(scope="session")
def reference() -> Iterator[Path]:
    """ext4 in an image on an XFS that can share blocks."""
    with lower_filesystem("xfs") as lower, upper(lower, "ext4") as point:
        yield point


@pytest.fixture(scope="session")
def socket(reference: Path, xfs: Path) -> Iterator[str]:
    """A service that other users can reach."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        os.chmod(directory, 0o711)
        with serving(Path(directory), [reference, xfs], RISKS) as path:
            os.chmod(path, 0o666)
            yield path
